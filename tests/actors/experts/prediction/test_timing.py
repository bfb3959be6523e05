"""Times of merges and inputs: measured for every kind of result, and nothing else is changed."""

from pathlib import Path

import pytest
import torch

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prediction.timing import ROWS, fastest
from actors.experts.prepare_data import prepare_data
from actors.experts.requests import ExpertScores, Time
from actors.pool.pool import open_pool

NAMES = ("lines", "tones", "blobs")

HOT = dump_coding(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1), NAMES, ())
MERGED = [
    Recipe("task_arithmetic", {"scale": 0.3}),
    Recipe("ties"),
    Recipe("emr"),
    Recipe("fisher", {"examples": 8}),
    Recipe("greedy_soup", {}, HOT),
]
NOT_MERGED = [Recipe("pretrained"), Recipe("experts"), Recipe("ensemble"), Recipe("dawin")]


@pytest.fixture(scope="module")
def experts(tiny_pool, tmp_path_factory) -> LocalExperts:
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("timing")
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    roles = ["fit", "select", "report"]
    data = prepare_data(pool.base, tasks, Splits(), roles, cache)
    identity = {name: name for name in (*NAMES, "pretrained")}
    return local_experts(pool, data, EmbeddingCache(cache / "embeddings", identity))


@pytest.mark.parametrize("recipe", [*MERGED, *NOT_MERGED], ids=lambda recipe: recipe.method)
def test_every_kind_is_timed_and_results_stay(experts: LocalExperts, recipe: Recipe):
    before = experts.logits(recipe, "report")
    found = Time(recipe, "report").run(experts)
    assert found.rows == min(ROWS, 60)
    assert 0 < found.input_s < 60
    assert (found.merge_s is None) == (recipe in NOT_MERGED)
    after = experts.logits(recipe, "report")
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


def test_no_cache_is_read_or_written(experts: LocalExperts):
    root: Path = experts.runner.embeddings.root
    experts.logits(Recipe("ensemble"), "report")
    kept = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    asked: list[int] = []
    embed = experts.runner.pipeline.embed

    def counting(weights, given):
        given = list(given)
        asked.extend(batch.size for batch in given)
        return embed(weights, given)

    experts.runner.pipeline.embed = counting  # type: ignore[method-assign]
    try:
        experts.timed(Recipe("ensemble"), "report")
    finally:
        experts.runner.pipeline.embed = embed  # type: ignore[method-assign]
    assert asked.count(60) >= 2 * len(NAMES)  # each expert ran, though its outputs were cached
    assert {path: path.stat().st_mtime_ns for path in root.iterdir()} == kept


def test_every_expert_is_scored_on_every_task(experts: LocalExperts):
    found = ExpertScores("report").run(experts)
    assert list(found) == ["pretrained", *NAMES]
    own = experts.evaluate(Recipe("experts"), "report")
    base = experts.evaluate(Recipe("pretrained"), "report")
    for task in NAMES:
        assert found[task][task]["acc"] == own.scores[task].accuracy
        assert found["pretrained"][task]["acc"] == base.scores[task].accuracy
    assert found["lines"]["tones"]["acc"] < found["tones"]["tones"]["acc"]


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch):
    times = iter([0.0, 0.5, 1.0, 1.2, 2.0, 2.4])
    monkeypatch.setattr("actors.experts.prediction.timing.time.perf_counter", lambda: next(times))
    assert fastest(lambda: None) == pytest.approx(0.2)


def test_slow_calls_are_not_repeated(monkeypatch: pytest.MonkeyPatch):
    times = iter([0.0, 4.0])
    monkeypatch.setattr("actors.experts.prediction.timing.time.perf_counter", lambda: next(times))
    assert fastest(lambda: None) == 4.0


def test_a_module_on_a_merged_model_is_timed_as_that_model(experts: LocalExperts):
    params = {"of": {"ties": {}}, "steps": 0}
    learned, _ = experts.fit(Recipe("surgery", params))
    found = Time(Recipe("surgery", params, learned), "report").run(experts)
    assert found.merge_s is not None
    assert 0 < found.input_s < 60
