"""Trials that learn, broken off: they go on from a checkpoint, to the same bits."""

import pytest

from sweeps.results.folder import learned_name, state_name
from tests.sweeps.trials.learning import PARAMS, learn

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched:
    """Experts that count the steps that they take, and end before one of them."""

    def __init__(self, experts, dies=None):
        self.experts, self.dies, self.taken = experts, dies, 0
        self.evaluate = experts.evaluate

    def step(self, count):
        if self.dies is not None and self.taken + count >= self.dies:
            raise KeyboardInterrupt
        self.taken += count

    def gradients(self, *given):
        self.step(1)
        return self.experts.gradients(*given)

    def train(self, recipe, state, first, last, seed):
        self.step(last - first)
        return self.experts.train(recipe, state, first, last, seed)


@pytest.mark.parametrize("method", PARAMS)
def test_a_trial_killed_between_checkpoints_ends_the_same(method, trials, tmp_path):
    whole, learned = trials.run(method, tmp_path / "whole")
    config, inputs = trials.trial(method, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        learn(config, Watched(trials.experts, dies=6), inputs)
    assert inputs.artifacts.get(state_name("k"))  # of step 3
    going = Watched(trials.experts)
    resumed = learn(config, going, inputs)
    assert resumed[-1][:3] == whole[-1][:3]
    assert going.taken == whole[-1][2] - 3  # what the checkpoint holds is not learned again
    assert inputs.artifacts.get(learned_name("k")) == learned
    assert whole[-1][3][-1]["step"] == whole[-1][2]


@pytest.mark.parametrize("method", ["dawe", "ewemoe"])
def test_a_damaged_checkpoint_starts_over(method, trials, tmp_path):
    _, learned = trials.run(method, tmp_path / "whole")
    for damage in (
        b"nonsense",
        b'{"step": 3}\nnonsense',
        b'{"stride": 3}\n',
        b'{"step": 4}\n' + learned,
    )[: None if method == "ewemoe" else 1]:
        config, inputs = trials.trial(method, tmp_path / "bad")
        inputs.artifacts.put(state_name("k"), damage)
        learn(config, trials.experts, inputs)
        assert inputs.artifacts.get(learned_name("k")) == learned
