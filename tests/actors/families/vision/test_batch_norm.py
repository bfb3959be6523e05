"""Batch norm of merged models: measured on fit rows or averaged, the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts import statistics
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prediction.racing import Terms
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import Pool, open_pool
from actors.pool.running import batch_norm
from fusion.errors import InputError
from fusion.methods.soups.batch_norm import BatchNormMeter
from tests.actors.families.vision.models import Models, write_task

RUNS, TASKS = ("run_1", "run_2", "run_3"), ("shapes", "more")
CUTS = {"whole": [(0, 5)], "two": [(0, 2), (2, 5)], "each": [(i, i + 1) for i in range(5)]}

Built = Callable[..., LocalExperts]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    models = Models("basic")
    base = models.write(tmp_path / "base")
    runs = {run: str(models.write(tmp_path / run, at + 1, 0.1)) for at, run in enumerate(RUNS)}
    return open_pool(str(base), runs)


@pytest.fixture
def built(pool: Pool, tmp_path: Path) -> Built:
    """Experts over drawn images, for a cut into shards and a policy."""
    sources = {n: write_task(tmp_path / "data" / n, at) for at, n in enumerate(TASKS)}
    tasks = {
        name: open_task(TaskSource(name, str(each)), "image") for name, each in sources.items()
    }
    data = prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), tmp_path)
    cache = embedding_cache(tmp_path, pool, "cpu", {})
    return lambda cut="whole", policy="reestimate": local_experts(
        pool, data, cache, blocks=CUTS[cut], policy=policy
    )


def pixels_of(experts: LocalExperts) -> Tensor:
    """All fit rows that statistics are measured on, in one tensor."""
    shard = experts.runner.pipeline.shards[0]
    given = statistics.norm_batches(experts.runner, None)
    return torch.cat([shard.to_device(batch)["pixels"] for batch in given])


def library(pool: Pool, merged: dict[str, Tensor], running: dict[str, Tensor]) -> Any:
    """The merged model as a model of `transformers`."""
    model = Models("basic").made()
    state = model.state_dict()
    names = {key.removeprefix("resnet."): key for key in state}
    tensors = {names[name]: value for name, value in {**merged, **running}.items()}
    model.load_state_dict({**state, **tensors})
    return model.eval()


METHODS = {
    "task_arithmetic": {"scale": 0.4},
    "ties": {},
    "uniform_soup": {},
    "wise_ft": {"expert": "run_2", "alpha": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_those_of_the_rows_as_one_batch(
    method: str, built: Built, pool: Pool
) -> None:
    experts, recipe = built(), Recipe(method, METHODS[method])
    running = experts.running(recipe)
    merged = experts.merge(recipe)
    model = library(pool, merged, {})
    pixels = pool.family.inputs(pool.base).preprocess.normalise(pixels_of(experts))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model(pixels)
    wanted = {k.removeprefix("resnet."): v for k, v in model.state_dict().items() if "running" in k}
    assert sorted(wanted) == sorted(running)
    for name, value in running.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    logits = experts.logits(recipe, "report")["more"]
    shard, runner = experts.runner.pipeline.shards[0], experts.runner
    report = shard.to_device(runner.batch("more", "report", slice(0, 12)))["pixels"]
    with torch.inference_mode():
        found = library(pool, merged, running)(
            pool.family.inputs(pool.base).preprocess.normalise(report)
        )
    torch.testing.assert_close(logits, found.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut", list(CUTS)[1:])
@pytest.mark.parametrize("batch", [8, 256])
def test_shards_and_repetition_give_the_same_bits(
    cut: str, batch: int, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "NORM_BATCH", batch)
    recipe = Recipe("ties")
    whole, parts, again = built(), built(cut), built()
    wanted = whole.running(recipe)
    for experts in (parts, again):
        found = experts.running(recipe)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        for role in ("select", "report"):
            logits, others = experts.logits(recipe, role), whole.logits(recipe, role)
            assert all(torch.equal(logits[task], each) for task, each in others.items())
    other = Recipe("task_arithmetic", {"scale": 0.4})
    before = whole.logits(other, "report")["more"]
    whole.logits(recipe, "report")
    assert torch.equal(whole.logits(other, "report")["more"], before)


def test_batches_hold_rows_of_all_tasks_and_no_label(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "NORM_BATCH", 8)
    made = statistics.norm_batches(built().runner, None)
    assert len(made) > 3
    assert all({task for task, _, _ in batch.parts} == set(TASKS) for batch in made)
    assert all(batch.labels is None for batch in made)
    alone = statistics.norm_batches(built().runner, "more")
    assert {task for batch in alone for task, _, _ in batch.parts} == {"more"}


def test_members_have_their_own_statistics(built: Built, pool: Pool) -> None:
    experts = built()
    norms = batch_norm(pool)
    for member in ("pretrained", *RUNS):
        runner = experts.runner
        found = runner.embedded(member, "more", "report")
        shard = runner.pipeline.shards[0]
        folder = (pool.base if member == "pretrained" else pool.experts[member]).folder
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        report = shard.to_device(runner.batch("more", "report", slice(0, 12)))["pixels"]
        with torch.inference_mode():
            wanted = model(pool.family.inputs(pool.base).preprocess.normalise(report)).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        state = {k.removeprefix("resnet."): v for k, v in model.state_dict().items()}
        assert all(torch.equal(v, state[k]) for k, v in norms.members[member].items())
    one = dump_coding(torch.tensor([[[0.0], [1.0], [0.0]]]), pool.tasks, pool.groups)
    found = experts.running(Recipe("greedy_soup", {}, one))
    assert all(torch.equal(v, norms.members["run_2"][k]) for k, v in found.items())


def test_a_race_has_the_statistics_of_an_evaluation(built: Built) -> None:
    experts, recipe = built(), Recipe("ties")
    wanted = experts.evaluate(recipe, "report").metrics()
    found, standing = built().race(recipe, "report", Terms("acc/mean"))
    assert found is not None
    assert found.metrics()["acc/mean"] == wanted["acc/mean"] == standing.at_most


def test_averages(built: Built, pool: Pool) -> None:
    experts, members = built(policy="average"), batch_norm(pool).members
    name = next(iter(members["run_1"]))
    mean = sum(members[run][name] for run in RUNS) / 3

    def found(method: str, params: Any = None, coding: Any = None) -> Tensor:
        data = None
        if coding is not None:
            given = torch.tensor(coding)[None, :, None]
            data = dump_coding(given, pool.tasks, pool.groups)
        return experts.running(Recipe(method, params or {}, data))[name]

    for method in ("ties", "simple_average", "uniform_soup"):
        torch.testing.assert_close(found(method), mean)
    torch.testing.assert_close(found("task_arithmetic", {"scale": 2.0}), mean)
    half = found("wise_ft", {"expert": "run_2", "alpha": 0.25})
    torch.testing.assert_close(
        half, 0.75 * members["pretrained"][name] + 0.25 * members["run_2"][name]
    )
    two = found("greedy_soup", coding=[0.5, 0.0, 0.5])
    torch.testing.assert_close(two, (members["run_1"][name] + members["run_3"][name]) / 2)
    past = found("learned_soup", coding=[1.5, 0.0, -0.5])
    torch.testing.assert_close(past, members["run_1"][name])
    shares = found("weighted_average", {"weights": [1, 2, 1]})
    wanted = sum(w * members[r][name] for r, w in zip(RUNS, (0.25, 0.5, 0.25), strict=True))
    torch.testing.assert_close(shares, wanted)


def test_a_model_a_task_is_measured_on_its_task(pool: Pool, tmp_path: Path) -> None:
    sources = {n: write_task(tmp_path / "data" / n, at) for at, n in enumerate(RUNS)}
    tasks = {
        name: open_task(TaskSource(name, str(each)), "image") for name, each in sources.items()
    }
    data = prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), tmp_path)
    experts = local_experts(pool, data, embedding_cache(tmp_path, pool, "cpu", {}))
    found = experts.running(Recipe("emr"))
    names = [name.removeprefix("run_1/") for name in found if name.startswith("run_1/")]
    assert sorted(names) == sorted(pool.base.rest)
    assert not torch.equal(found[f"run_1/{names[0]}"], found[f"run_2/{names[0]}"])
    assert experts.evaluate(Recipe("emr"), "report").metrics()


def test_a_coding_is_learned_by_the_statistics_of_batches(built: Built, pool: Pool) -> None:
    from fusion.methods.learned.steps import MicroBatch
    from fusion.task_vectors.sparsify import Trim

    coding = torch.full((1, 3, len(pool.groups)), 0.3)
    given = [MicroBatch({"more": torch.arange(6)}, coding)]
    whole = built().gradients(given, "fit", Trim())
    parts = built("two").gradients(given, "fit", Trim())
    assert bool(whole[0].coding.any())
    assert torch.equal(whole[0].coding, parts[0].coding)
    assert whole[0].losses == parts[0].losses


def test_statistics_that_cannot_be(pool: Pool, built: Built, tmp_path: Path) -> None:
    experts = built()
    file = pool.experts["run_1"].folder / "model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.endswith("running_var"))
    save_file({**state, name: -state[name]}, file, {"format": "pt"})
    again = open_pool(str(pool.base.folder), {"run_1": str(file.parent)})
    with pytest.raises(InputError, match=r"model.safetensors: tensor '.*': a negative variance"):
        batch_norm(again)
    for task in experts.runner.data.values():
        task.rows.pop("fit")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="batch_norm: 'reestimate': the tasks: 0 fit rows"):
        experts.evaluate(Recipe("ties"), "report")
    assert experts.evaluate(Recipe("experts"), "report") is not None


def test_a_single_batch_and_many_agree_where_the_rows_do() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 4, 3, 3, generator=draw) * 2 + 1
    layers = [torch.nn.BatchNorm2d(4) for _ in range(2)]
    meters = [BatchNormMeter({"a": layer}) for layer in layers]
    for meter, layer, size in zip(meters, layers, (30, 7), strict=True):
        with torch.no_grad(), meter.measuring():
            for part in rows.split(size):
                layer(part)
        assert layer.training
        assert layer.momentum == 0.1
    one, many = (meter.found()["a"] for meter in meters)
    flat = rows.transpose(0, 1).flatten(1).double()
    for mean, variance in (one, many):
        torch.testing.assert_close(mean.double(), flat.mean(1), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(variance.double(), flat.var(1), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="one value a channel"):
        meters[0].add("a", torch.zeros(1, 4, 1, 1))
    with pytest.raises(InputError, match="no rows to take"):
        BatchNormMeter({"b": layers[0]}).found()
