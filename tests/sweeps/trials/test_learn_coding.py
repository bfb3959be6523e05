"""A learning trial without Ray: checkpoints, resumption, rungs, files; the fleet is local."""

from dataclasses import replace

import pytest

from actors.artifacts.coding_file import load_coding
from actors.artifacts.gate_file import load
from actors.artifacts.recipe import Recipe
from fusion.errors import InputError
from tests.sweeps.trials.learning import NAMES, learn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rungs_are_reported_for_methods_with_a_scheduler_only(trials, tmp_path):
    dawe, _ = trials.run("dawe", tmp_path / "a")
    assert [(rung, step) for rung, _, step, _ in dawe] == [(1, 1), (3, 4), (9, 12)]
    adamerging, _ = trials.run("adamerging", tmp_path / "b")
    assert [(rung, step) for rung, _, step, _ in adamerging] == [(9, 9)]


def test_what_is_learned_is_what_was_measured(trials, tmp_path):
    experts, inputs = trials.experts, trials.inputs
    for method in ("dawe", "adamerging"):
        config, _ = trials.trial(method, tmp_path)
        reports, learned = trials.run(method, tmp_path / method)
        again = experts.evaluate(Recipe(method, config["params"], learned), "select").metrics()
        assert again == reports[-1][1]
    _, manifest = load(trials.run("dawe", tmp_path / "c")[1], "x")
    assert (manifest.tasks, manifest.steps, manifest.grouping) == (NAMES, 12, "task")
    coding = load_coding(learned, NAMES, inputs.groups, "x")
    assert coding.shape == (1, 3, len(inputs.groups))
    assert float((coding - 0.3).abs().max()) > 0.01


def test_learning_lowers_the_entropy(trials, tmp_path):
    reports, _ = trials.run("adamerging", tmp_path, steps=60, learning_rate=0.01)
    curve = reports[-1][3]
    assert curve[-1]["loss"] < curve[0]["loss"]
    losses = sum(value for name, value in curve[0].items() if name.startswith("loss/"))
    assert curve[0]["loss"] == pytest.approx(losses)


def test_no_steps_measure_task_arithmetic(trials, tmp_path):
    experts = trials.experts
    reports, _ = trials.run("adamerging", tmp_path, steps=0)
    wanted = experts.evaluate(Recipe("task_arithmetic"), "select").metrics()
    assert reports[-1][1]["acc/mean"] == wanted["acc/mean"]
    assert reports[-1][1]["nll/mean"] == pytest.approx(wanted["nll/mean"], abs=1e-5)
    gated, _ = trials.run("dawe", tmp_path / "g", steps=0)
    assert gated[-1][1]["nll/mean"] == pytest.approx(wanted["nll/mean"], abs=1e-5)


def test_a_gate_moves_to_another_trial_as_it_is(trials, tmp_path):
    reports, learned = trials.run("dawe", tmp_path / "a")
    path = tmp_path / "gate.safetensors"
    path.write_bytes(learned)
    moved, _ = trials.run("dawe", tmp_path / "b", gate=str(path), steps=0)
    assert moved[-1][1] == reports[-1][1]


def test_a_loss_that_is_no_number_is_one_line_and_keeps_nothing(trials, tmp_path):
    config, inputs = trials.trial("dawe", tmp_path)
    experts = trials.experts

    class Broken:
        evaluate = experts.evaluate

        def gradients(self, micro_batches, role, trim):
            found = experts.gradients(micro_batches, role, trim)
            found[1] = replace(found[1], losses={"tones": float("nan")})
            return found

    with pytest.raises(InputError, match=r"step 0: task 'tones': loss nan"):
        learn(config, Broken(), inputs)
    assert not list(tmp_path.glob("k*"))


def test_features_of_another_width_are_one_line(trials, tmp_path):
    config, inputs = trials.trial("dawe", tmp_path)
    experts = trials.experts
    ((key, extractor),) = inputs.extractors.items()
    wrong = replace(inputs, extractors={key: replace(extractor, width=5)})
    with pytest.raises(InputError, match=r"features: shape \[\d+, 8\]; \[B, 5\] needed"):
        learn(config, experts, wrong)
