"""Logits are what evaluations compare with labels, whatever makes them."""

import pytest
import torch

from actors.codings import dump_coding
from actors.data import prepare_data
from actors.embeddings import EmbeddingCache
from actors.evaluation import Recipe, score
from actors.local import local_experts
from actors.pool import open_pool
from actors.tasks import Splits, TaskSource, open_task

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
        again = score(z, experts.labels(name, "report"))
        assert again.nll == measured.scores[name].nll
        assert (again.correct == measured.scores[name].correct).all()


def test_a_point_that_is_an_expert_has_its_logits(experts):
    point, alone = (
        experts.logits(Recipe("greedy_soup", {}, HOT), "report"),
        experts.logits(Recipe("experts"), "report"),
    )
    assert torch.equal(point["tones"], alone["tones"])
    assert not torch.equal(point["lines"], alone["lines"])
