"""A race evaluates the rows in another order, and stops where the bar is out of reach."""

import pytest
import torch

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prediction import racing
from actors.experts.prediction.racing import Terms, at_random, hardest_first
from actors.experts.prepare_data import prepare_data
from actors.experts.requests import Race
from actors.pool.pool import open_pool

NAMES = ("lines", "tones", "blobs")
RECIPE = Recipe("task_arithmetic", {"scale": 0.3})


@pytest.fixture(scope="module")
def experts(tiny_pool, tmp_path_factory):
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("racing")
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    data = prepare_data(pool.base, tasks, Splits(), ["select", "report"], cache)
    identity = {name: name for name in (*NAMES, "pretrained")}
    shape = [(0, 2), (2, None)]
    made = {}
    for blocks in (None, shape):
        chain = len(pool.family.segments(pool.base))
        cut = [None] if blocks is None else [(a, b or chain) for a, b in blocks]
        made[len(cut)] = local_experts(
            pool, data, EmbeddingCache(cache / "embeddings", identity), blocks=cut
        )
    return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(racing, "LEAST", 7)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("shards", [1, 2])
def test_without_a_bar_all_rows_are_evaluated(experts, shards, confidence):
    whole = experts[shards].evaluate(RECIPE, "report")
    found, standing = experts[shards].race(
        RECIPE, "report", Terms("acc/mean", confidence=confidence)
    )
    assert (standing.rows, standing.seen) == (180, dict.fromkeys(NAMES, 60))
    assert standing.at_most == pytest.approx(found.metrics()["acc/mean"])
    for name, each in found.scores.items():
        assert (each.correct == whole.scores[name].correct).all()
        assert each.nll == pytest.approx(whole.scores[name].nll, abs=1e-5)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("metric", ["acc/mean", "acc/tones"])
def test_a_candidate_below_the_bar_is_stopped(experts, metric, confidence):
    score = experts[1].evaluate(RECIPE, "report").metrics()[metric]
    terms = {"metric": metric, "confidence": confidence, "seed": 3}
    same = Race(RECIPE, "report", bar=score, **terms).run(experts[1])
    assert "stopped" not in same
    assert same["metrics"][metric] == pytest.approx(score)
    found = Race(RECIPE, "report", bar=score + 0.2, **terms).run(experts[1])
    stopped = found.pop("stopped")
    assert found["metrics"] == found["n"] == {}
    assert 0 < stopped["rows"] < stopped["of"] == 180
    assert score <= stopped["at_most"]
    assert stopped["at_most"] < stopped["best"] == score + 0.2 or confidence is not None
    assert (stopped["metric"], stopped["confidence"]) == (metric, confidence)


def test_an_early_row_is_a_hard_one(experts):
    """Errors come sooner than in the order of the files, so fewer rows are needed."""
    score = experts[1].evaluate(RECIPE, "report").metrics()["acc/mean"]
    _, hard = experts[1].race(RECIPE, "report", Terms("acc/mean", score + 0.1))
    order = [[(name, torch.arange(s, s + 5).numpy())] for name in NAMES for s in range(0, 60, 5)]
    key = ("report", "acc/mean", True, 99)
    experts[1].runner.orders[key] = order
    _, files = experts[1].race(RECIPE, "report", Terms("acc/mean", score + 0.1, seed=99))
    assert hard.rows < files.rows


def test_every_row_is_in_one_chunk():
    sizes = {"a": 10, "b": 3, "c": 6}
    difficulty = {name: torch.rand(size).numpy() for name, size in sizes.items()}
    for chunks in (at_random(sizes, 5, 1), hardest_first(difficulty, 4)):
        for name, size in sizes.items():
            rows = [row for chunk in chunks for task, part in chunk if task == name for row in part]
            assert sorted(rows) == list(range(size))
