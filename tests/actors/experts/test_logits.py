"""Logits are what evaluations compare with labels, whatever makes them."""

from dataclasses import replace

import pytest
import torch

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import score
from actors.experts.local import LocalExperts, local_experts
from actors.experts.model_runner import ModelRunner
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool

NAMES = ("lines", "tones", "blobs")
HALF = dump_coding(torch.tensor([0.5, 0.5, 0.0]).view(1, 3, 1), NAMES, ())
HOT = dump_coding(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1), NAMES, ())


@pytest.fixture(scope="module")
def experts(tiny_pool, tmp_path_factory):
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("logits")
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    data = prepare_data(pool.base, tasks, Splits(), ["select", "report"], cache)
    identity = {name: name for name in (*NAMES, "pretrained")}
    return local_experts(pool, data, EmbeddingCache(cache / "embeddings", identity))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("greedy_soup", {}, HALF),
        Recipe("task_arithmetic", {"scale": 0.3}),
        Recipe("ensemble"),
        Recipe("dawin", {"granularity": "domain"}),
        Recipe("pretrained"),
    ],
    ids=lambda recipe: recipe.method,
)
def test_an_evaluation_is_of_these_logits(experts, recipe):
    found, measured = experts.logits(recipe, "report"), experts.evaluate(recipe, "report")
    assert list(found) == list(measured.scores) == list(NAMES)
    for name, z in found.items():
        assert (z.dtype, z.device.type, z.shape[0]) == (torch.float32, "cpu", 60)
        again = score(z, experts.runner.labels(name, "report"))
        assert again.nll == measured.scores[name].nll
        assert (again.correct == measured.scores[name].correct).all()


def test_some_rows_have_the_same_bits_whatever_is_cached(experts, tmp_path, monkeypatch):
    """A few-shot method's keys may not depend on which method came first."""
    at = torch.tensor([7, 3, 5])
    first = experts.runner.embedded_at("tones", "lines", "select", at)
    whole = experts.runner.embedded("tones", "lines", "select")
    again = experts.runner.embedded_at("tones", "lines", "select", at)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, whole[at], rtol=1e-4, atol=1e-5)
    other = EmbeddingCache(tmp_path, experts.runner.embeddings.identity)
    monkeypatch.setattr(experts.runner, "embeddings", other)
    experts.runner.embedded("tones", "lines", "select")  # now the whole comes first
    assert torch.equal(experts.runner.embedded_at("tones", "lines", "select", at), first)


def test_a_point_that_is_an_expert_has_its_logits(experts):
    point, alone = (
        experts.logits(Recipe("greedy_soup", {}, HOT), "report"),
        experts.logits(Recipe("experts"), "report"),
    )
    assert torch.equal(point["tones"], alone["tones"])
    assert not torch.equal(point["lines"], alone["lines"])


def test_a_row_that_is_no_number_is_wrong_whatever_its_label():
    nan, inf = float("nan"), float("inf")
    z = torch.tensor([[nan, 0.0], [2.0, 1.0], [inf, 0.0], [-inf, 0.0], [0.0, 3.0]])
    found = score(z, torch.tensor([0, 0, 0, 1, 1]))
    assert found.correct.tolist() == [False, True, False, True, True]
    assert found.nll != found.nll
    assert score(z[[1, 3, 4]], torch.tensor([0, 1, 1])).nll > 0


def test_shift_sets_may_be_of_some_tasks_and_other_roles_of_all(experts):
    def with_roles(**roles):
        data = {
            name: replace(task, rows={**task.rows, **roles.get(name, {})})
            for name, task in experts.runner.data.items()
        }
        runner = experts.runner
        return LocalExperts(ModelRunner(runner.pipeline, runner.tasks, data, runner.embeddings))

    rows = experts.runner.data["tones"].rows["report"]
    some = with_roles(tones={"shift/dark": rows, "fit": rows})
    found = some.evaluate(Recipe("pretrained"), "shift/dark")
    assert list(found.scores) == ["tones"]
    assert list(some.evaluate(Recipe("experts"), "shift/dark").scores) == ["tones"]
    assert found.metrics()["acc/mean"] == found.metrics()["acc/tones"]
    with pytest.raises(KeyError, match="task 'lines' has no rows of role 'fit'"):
        some.evaluate(Recipe("pretrained"), "fit")
    with pytest.raises(KeyError, match="task 'lines' has no rows of role 'shift/light'"):
        some.evaluate(Recipe("pretrained"), "shift/light")
