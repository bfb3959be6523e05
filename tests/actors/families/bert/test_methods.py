"""Methods over text classifiers in one process: fused classifiers, and experts with their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import Pool, open_pool
from tests.tiny_bert import Models, write_texts

CLASSES = {"film": ("good", "bad", "fine"), "play": ("good", "bad")}
CUTS = [[(0, 4)], [(0, 2), (2, 4)]]

Built = Callable[[list[tuple[int, int]]], LocalExperts]


def built(pool: Pool, tasks: tuple[str, ...], root: Path) -> Built:
    """Experts on drawn texts, for a cut into shards; heads are those that experts bring."""
    given = pool.family.own_heads(pool.base, pool.experts)
    opened = {}
    for seed, name in enumerate(tasks):
        folder = write_texts(root / "data" / name, CLASSES[name], seed, pairs=name == "play")
        text = ["text", "second"] if name == "play" else None
        source = TaskSource(name, str(folder), head=given.get(name), text=text)
        opened[name] = open_task(source, "text")
    data = prepare_data(pool.base, opened, Splits(), ("fit", "select", "report"), root)
    cache = embedding_cache(root, pool, "cpu", {})
    return lambda cut: local_experts(pool, data, cache, blocks=cut)


@pytest.fixture
def soup(models: Models, tmp_path: Path) -> Built:
    base = models.write(tmp_path / "base")
    runs = {f"run_{at}": str(models.write(tmp_path / f"run_{at}", at + 1)) for at in range(2)}
    return built(open_pool(str(base), runs), ("film",), tmp_path)


@pytest.fixture
def experts(models: Models, tmp_path: Path) -> Built:
    base = models.write(tmp_path / "base", encoder=True)
    members = {
        name: str(models.write(tmp_path / name, at + 5, classes=len(names)))
        for at, (name, names) in enumerate(CLASSES.items())
    }
    return built(open_pool(str(base), members), tuple(CLASSES), tmp_path)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("uniform_soup", {}),
        ("task_arithmetic", {"scale": 0.3}),
        ("wise_ft", {"expert": "run_1", "alpha": 0.5}),
        ("ties", {}),
        ("ensemble", {}),
    ],
)
def test_fused_classifiers_are_the_same_for_every_cut(
    method: str, params: dict[str, object], soup: Built
) -> None:
    whole, cut = (soup(each).logits(Recipe(method, params), "report")["film"] for each in CUTS)
    assert whole.shape == (24, 3)
    torch.testing.assert_close(whole, cut)


def test_an_ensemble_is_the_mean_of_the_ingredients_logits(soup: Built) -> None:
    found = soup(CUTS[0])
    each = [found.runner.logits_of(run, "film", "report") for run in ("run_0", "run_1")]
    wanted = (each[0] + each[1]) / 2
    torch.testing.assert_close(found.logits(Recipe("ensemble"), "report")["film"], wanted)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {"scale": 0.3}),
        ("regmean", {"examples": 6}),
        ("lot", {"examples": 6}),
        ("fisher", {"examples": 6, "batch_size": 3}),
        ("dawin", {"granularity": "sample"}),
        ("ensemble", {}),
    ],
)
def test_experts_of_two_tasks_are_measured_under_their_own_classifiers(
    method: str, params: dict[str, object], experts: Built
) -> None:
    whole, cut = (experts(each).logits(Recipe(method, params), "report") for each in CUTS)
    assert {name: z.shape for name, z in whole.items()} == {"film": (24, 3), "play": (24, 2)}
    for name, z in whole.items():
        torch.testing.assert_close(z, cut[name], rtol=1e-4, atol=1e-5)


def test_an_expert_is_the_library_s_model_on_pairs_of_texts(
    experts: Built, models: Models, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "play"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = pq.read_table(tmp_path / "data" / "play" / "test.parquet").to_pydict()
    given = tokenizer(
        *(table["text"], table["second"]),
        truncation=True, padding=True, max_length=20, return_tensors="pt",
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        wanted = model(**given).logits
    found = experts(CUTS[0]).logits(Recipe("experts"), "report")["play"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
