"""A trial whose parameters live in shards, without Ray: checkpoints, resumption, rungs, files."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool
from fusion.errors import InputError
from sweeps.planning.learning_needs import needs_of
from sweeps.planning.print_plan import learned_images
from sweeps.report.charts.learning_curves import asked_steps
from sweeps.results.disclosures import notes_of
from sweeps.results.folder import learned_name, state_name
from sweeps.results.ledger import Entry
from sweeps.spec.sweep import SplitSpec, validate
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs, sizes_of
from sweeps.trials.learn_in_model import learn

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("lines", "tones", "blobs")
FEW = {"batch_size": 4, "learning_rate": 0.02, "save_every": 3}
METHODS = {
    "ewemoe": {"steps": 9},
    "concrete_adamerging": {"steps": 4, "coefficient_steps": 5},
}


@pytest.fixture(scope="module")
def parts(tiny_pool, tmp_path_factory):
    """Local experts and learning inputs over them."""
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("in_model")
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in NAMES})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in NAMES}
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], cache)
    identity = {task: task for task in (*NAMES, "pretrained")}
    experts = local_experts(pool, data, EmbeddingCache(cache / "e", identity))
    inputs = LearningInputs(
        pool.tasks, pool.groups, data, sizes_of(data), {}, LocalStore(Path()), frozenset({"ewemoe"})
    )
    return experts, inputs


def trial(method, parts, folder, **params):
    experts, inputs = parts
    config = {
        "method": method,
        "params": {**FEW, **METHODS[method], **params},
        "trial_key": "k",
        "seed": 5,
    }
    return config, experts, replace(inputs, artifacts=LocalStore(folder))


def run(method, parts, folder, **params):
    """The reports, and the learned file's bytes."""
    config, experts, inputs = trial(method, parts, folder, **params)
    reports = []
    learn(config, experts, inputs, lambda rung, found, state: reports.append(
        (rung, found.metrics(), state.step, [dict(p) for p in state.curve])
    ))  # fmt: skip
    return reports, (folder / learned_name("k")).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_killed_between_checkpoints_ends_the_same(method, parts, tmp_path):
    whole, learned = run(method, parts, tmp_path / "whole")
    config, experts, inputs = trial(method, parts, tmp_path / "cut")
    spans = []

    class Watched:
        evaluate = experts.evaluate
        dies = True

        def train(self, recipe, state, first, last, seed):
            spans.append((first, last))
            if self.dies and last > 5:
                raise KeyboardInterrupt
            return experts.train(recipe, state, first, last, seed)

    with pytest.raises(KeyboardInterrupt):
        learn(config, Watched(), inputs, lambda *_: None)
    assert inputs.artifacts.get(state_name("k")) is not None
    spans.clear()
    going = Watched()
    going.dies, resumed = False, []
    learn(config, going, inputs, lambda rung, f, s: resumed.append((rung, f.metrics(), s.step)))
    assert spans == [(3, 6), (6, 9)]  # what the checkpoint holds is not learned again
    assert resumed[-1] == whole[-1][:3]
    assert inputs.artifacts.get(learned_name("k")) == learned
    assert [point["step"] for point in whole[-1][3]][-1] == 9


def test_rungs_are_reported_for_methods_with_a_scheduler_only(parts, tmp_path):
    reports, learned = run("ewemoe", parts, tmp_path / "a")
    assert [(rung, step) for rung, _, step, _ in reports] == [(1, 1), (3, 3), (9, 9)]
    curve = reports[-1][3]
    assert [point["step"] for point in curve] == [1, 3, 6, 9]
    assert curve[0]["loss"] == pytest.approx(sum(curve[0][f"loss/{name}"] for name in NAMES))
    other, _ = run("concrete_adamerging", parts, tmp_path / "b")
    assert [(rung, step) for rung, _, step, _ in other] == [(9, 9)]
    recipe = Recipe("ewemoe", {**FEW, **METHODS["ewemoe"]}, learned)
    assert parts[0].evaluate(recipe, "select").metrics() == reports[-1][1]


def test_a_damaged_checkpoint_starts_over(parts, tmp_path):
    _, learned = run("ewemoe", parts, tmp_path / "whole")
    for damage in (
        b"nonsense",
        b'{"step": 3}\nnonsense',
        b'{"stride": 3}\n',
        b'{"step": 4}\n' + learned,
    ):
        config, experts, inputs = trial("ewemoe", parts, tmp_path / "bad")
        inputs.artifacts.put(state_name("k"), damage)
        learn(config, experts, inputs, lambda *_: None)
        assert inputs.artifacts.get(learned_name("k")) == learned


def test_what_a_sweep_needs_and_says(tiny_pool):
    methods = {
        "wemoe": {"steps": 2, "batch_size": 8, "adapt_on": "report"},
        "concrete_adamerging": {**FEW, **METHODS["concrete_adamerging"], "tasks_at_once": 2},
    }
    spec = validate(tiny_pool.spec(methods=methods), "s.yaml")
    found = needs_of(spec, NAMES, ("a", "b"))
    assert (found.adapts_on, found.images, found.kept) == ({"fit", "report"}, 8, 7.0)
    # A step of the first stage looks at two batches of each of three tasks.
    images = learned_images(spec)
    assert images == {"wemoe": 2 * 8 * 3, "concrete_adamerging": (2 * 4 + 5) * 4 * 3}
    entry = Entry("k", "concrete_adamerging", "resident", {"steps": 4}, "done", "select", steps=9)
    assert asked_steps(entry) == 1004
    notes = notes_of("wemoe", methods["wemoe"], SplitSpec())
    assert notes == ("adapted to the unlabelled test images it is reported on",)
    assert notes_of("wemoe", {"steps": 0}, SplitSpec()) == ()
    wrong = validate(tiny_pool.spec(methods={"ewemoe": {"steps": 3}}), "s.yaml")
    broken = wrong.model_copy(
        update={
            "methods": {
                "ewemoe": wrong.methods["ewemoe"].model_copy(update={"params": {"prun": 1}})
            }
        }
    )
    with pytest.raises(InputError, match=r"methods\.ewemoe: .*did you mean 'prune'"):
        needs_of(broken, NAMES, ("a", "b"))
