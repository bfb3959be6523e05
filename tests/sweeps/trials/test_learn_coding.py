"""A learning trial without Ray: checkpoints, resumption, rungs, files; the fleet is local."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.artifacts.coding_file import load_coding
from actors.artifacts.gate_file import load
from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.gate_features.extractor import open_extractor
from actors.pool.pool import open_pool
from fusion.errors import InputError
from sweeps.results.folder import learned_name, state_name
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs, learn, sizes_of
from tests.sweeps.learning_pool import ADAMERGING, DAWE, make_extractor

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("lines", "tones", "blobs")


@pytest.fixture(scope="module")
def parts(tiny_pool, tmp_path_factory):
    """Local experts and learning inputs over them."""
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("learning")
    source = str(make_extractor(cache / "resnet"))
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in NAMES})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in NAMES}
    extractor = open_extractor(source, "x")
    data = prepare_data(
        pool.base, tasks, Splits(), ["fit", "select", "report"], cache, extractors=[extractor]
    )
    identity = {task: task for task in (*NAMES, "pretrained")}
    experts = local_experts(pool, data, EmbeddingCache(cache / "e", identity))
    inputs = LearningInputs(
        pool.tasks, pool.groups, data, sizes_of(data), {(source, False): extractor},
        LocalStore(Path()), frozenset({"dawe"}),
    )  # fmt: skip
    return experts, inputs, source


def trial(method, parts, folder, **params):
    experts, inputs, source = parts
    given = {"extractor": source, **DAWE} if method == "dawe" else dict(ADAMERGING)
    config = {"method": method, "params": given | params, "trial_key": "k", "seed": 5}
    return config, experts, replace(inputs, artifacts=LocalStore(folder))


def run(method, parts, folder, **params):
    """The reports, and the learned file's bytes."""
    config, experts, inputs = trial(method, parts, folder, **params)
    reports = []
    learn(config, experts, inputs, lambda rung, found, state: reports.append(
        (rung, found.metrics(), state.step, [dict(p) for p in state.curve])
    ))  # fmt: skip
    return reports, (folder / learned_name("k")).read_bytes()


@pytest.mark.parametrize("method", ["dawe", "adamerging"])
def test_a_trial_interrupted_between_checkpoints_ends_the_same(method, parts, tmp_path):
    whole, learned = run(method, parts, tmp_path / "whole")
    config, experts, inputs = trial(method, parts, tmp_path / "cut")
    calls = []

    class Dies:
        def gradients(self, *args):
            calls.append(args)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return experts.gradients(*args)

        evaluate = experts.evaluate

    with pytest.raises(KeyboardInterrupt):
        learn(config, Dies(), inputs, lambda *_: None)
    assert inputs.artifacts.get(state_name("k"))  # of step 3
    taken = []

    class Counts(Dies):
        def gradients(self, *args):
            taken.append(args)
            return experts.gradients(*args)

    resumed = []
    learn(config, Counts(), inputs, lambda rung, f, s: resumed.append((rung, f.metrics(), s.step)))
    steps = config["params"]["steps"]
    assert len(taken) == steps - 3  # what the checkpoint holds is not learned again
    assert resumed[-1] == whole[-1][:3]
    assert inputs.artifacts.get(learned_name("k")) == learned


def test_rungs_are_reported_for_methods_with_a_scheduler_only(parts, tmp_path):
    dawe, _ = run("dawe", parts, tmp_path / "a")
    assert [(rung, step) for rung, _, step, _ in dawe] == [(1, 1), (3, 4), (9, 12)]
    adamerging, _ = run("adamerging", parts, tmp_path / "b")
    assert [(rung, step) for rung, _, step, _ in adamerging] == [(9, 9)]


def test_what_is_learned_is_what_was_measured(parts, tmp_path):
    experts, inputs, _ = parts
    for method in ("dawe", "adamerging"):
        config, *_ = trial(method, parts, tmp_path)
        reports, learned = run(method, parts, tmp_path / method)
        again = experts.evaluate(Recipe(method, config["params"], learned), "select").metrics()
        assert again == reports[-1][1]
    _, manifest = load(run("dawe", parts, tmp_path / "c")[1], "x")
    assert (manifest.tasks, manifest.steps, manifest.grouping) == (NAMES, 12, "task")
    coding = load_coding(learned, NAMES, inputs.groups, "x")
    assert coding.shape == (1, 3, len(inputs.groups))
    assert float((coding - 0.3).abs().max()) > 0.01


def test_learning_lowers_the_entropy(parts, tmp_path):
    reports, _ = run("adamerging", parts, tmp_path, steps=60, learning_rate=0.01)
    curve = reports[-1][3]
    assert curve[-1]["loss"] < curve[0]["loss"]
    losses = sum(value for name, value in curve[0].items() if name.startswith("loss/"))
    assert curve[0]["loss"] == pytest.approx(losses)


def test_no_steps_measure_task_arithmetic(parts, tmp_path):
    experts, _, _ = parts
    reports, _ = run("adamerging", parts, tmp_path, steps=0)
    wanted = experts.evaluate(Recipe("task_arithmetic"), "select").metrics()
    assert reports[-1][1]["acc/mean"] == wanted["acc/mean"]
    assert reports[-1][1]["nll/mean"] == pytest.approx(wanted["nll/mean"], abs=1e-5)
    gated, _ = run("dawe", parts, tmp_path / "g", steps=0)
    assert gated[-1][1]["nll/mean"] == pytest.approx(wanted["nll/mean"], abs=1e-5)


def test_a_gate_moves_to_another_trial_as_it_is(parts, tmp_path):
    reports, learned = run("dawe", parts, tmp_path / "a")
    path = tmp_path / "gate.safetensors"
    path.write_bytes(learned)
    moved, _ = run("dawe", parts, tmp_path / "b", gate=str(path), steps=0)
    assert moved[-1][1] == reports[-1][1]


def test_a_loss_that_is_no_number_is_one_line_and_keeps_nothing(parts, tmp_path):
    config, experts, inputs = trial("dawe", parts, tmp_path)

    class Broken:
        evaluate = experts.evaluate

        def gradients(self, micro_batches, role, trim):
            found = experts.gradients(micro_batches, role, trim)
            found[1] = replace(found[1], losses={"tones": float("nan")})
            return found

    with pytest.raises(InputError, match=r"step 0: task 'tones': loss nan"):
        learn(config, Broken(), inputs, lambda *_: None)
    assert not list(tmp_path.glob("k*"))


def test_features_of_another_width_are_one_line(parts, tmp_path):
    config, experts, inputs = trial("dawe", parts, tmp_path)
    ((key, extractor),) = inputs.extractors.items()
    wrong = replace(inputs, extractors={key: replace(extractor, width=5)})
    with pytest.raises(InputError, match=r"features: shape \[\d+, 8\]; \[B, 5\] needed"):
        learn(config, experts, wrong, lambda *_: None)


def test_a_damaged_checkpoint_starts_over(parts, tmp_path):
    _, learned = run("dawe", parts, tmp_path / "whole")
    config, experts, inputs = trial("dawe", parts, tmp_path / "bad")
    inputs.artifacts.put(state_name("k"), b"nonsense")
    learn(config, experts, inputs, lambda *_: None)
    assert inputs.artifacts.get(learned_name("k")) == learned
