"""Finished T5s beside a pool: evaluated as they are, whole or cut, with `rank` and `exact`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.metrics import EXACT
from actors.experts.prepare_data import prepare_data
from actors.pool.merge_folders import open_folders
from actors.pool.pool import open_pool
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from tests.actors.families.t5.models import CLASSES, KINDS, LAST, write_pool
from tests.tiny_bert import make_models


def written(folder: Path, base: Path, tensors: Mapping[str, Tensor]) -> str:
    """A copy of the base's folder with these weights."""
    shutil.copytree(base, folder)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


CASES = {"whole": (KINDS[0], (None,)), "cut": (KINDS[1], ((0, 3), (3, LAST)))}
"""Kind of T5 (tied and untied output) and blocks of the process."""


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pool's folder, and the blocks."""
    kind, blocks = CASES[request.param]
    return write_pool(tmp_path_factory.mktemp("t5_references"), kind), blocks


@pytest.fixture(scope="module")
def root(case: Any) -> Path:
    return case[0]


@pytest.fixture(scope="module")
def experts(case: Any, root: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalExperts:
    place, sources = tmp_path_factory.mktemp("models"), {t: str(root / t) for t in CLASSES}
    folders = open_folders(str(root / "base"), sources)
    merged = folders.complete(METHODS["simple_average"].merge(folders.vectors, MergeInputs()))
    references = {
        "averaged": written(place / "averaged", root / "base", merged),
        "twin": str(shutil.copytree(root / "heat", place / "twin")),
        "start": str(root / "base"),
    }
    pool = open_pool(str(root / "base"), sources, references)
    tasks = {t: open_task(TaskSource(t, str(root / "data" / t)), "text") for t in CLASSES}
    data = prepare_data(pool.base, tasks, Splits(), ("select", "report"), place / "cache")
    cache = embedding_cache(place / "embeddings", pool, "cpu", {})
    return local_experts(pool, data, cache, blocks=case[1])


def test_another_tools_merge_has_the_rows_logits_and_answers(experts: LocalExperts) -> None:
    wanted = experts.logits(Recipe("simple_average"), "report")
    found = experts.logits(Recipe("averaged"), "report")
    assert found.keys() == wanted.keys() == CLASSES.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ours = experts.evaluate(Recipe("simple_average"), "report")
    theirs = experts.evaluate(Recipe("averaged"), "report")
    assert theirs.metrics() == ours.metrics()
    assert len(theirs.scores["colour"].samples(EXACT.name)) == 12
    assert {"exact/mean", "exact/heat"} <= theirs.metrics().keys()


def test_base_and_expert_as_references_have_their_own_numbers(experts: LocalExperts) -> None:
    base = experts.logits(Recipe("pretrained"), "report")
    start = experts.logits(Recipe("start"), "report")
    assert all(torch.equal(start[name], base[name]) for name in base)
    own = experts.logits(Recipe("experts"), "report")["heat"]
    twin = experts.logits(Recipe("twin"), "report")
    assert torch.equal(twin["heat"], own)
    assert not torch.equal(twin["colour"], base["colour"])


def test_rows_stay_as_they_are_after_a_reference(experts: LocalExperts) -> None:
    recipe = Recipe("task_arithmetic", {"scale": 0.3})
    before = experts.logits(recipe, "report")
    experts.evaluate(Recipe("twin"), "report")
    after = experts.logits(recipe, "report")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_weights_are_the_files(experts: LocalExperts, root: Path) -> None:
    file, merged = load_file(root / "heat" / "model.safetensors"), experts.merge(Recipe("twin"))
    assert len(merged) > 20
    assert all(torch.equal(tensor, file[name]) for name, tensor in merged.items())


def test_a_model_of_another_family_is_refused(root: Path, tmp_path: Path) -> None:
    bert = str(make_models(tmp_path)["bert"].write(tmp_path / "other"))
    sources = {t: str(root / t) for t in CLASSES}
    with pytest.raises(InputError, match=r"references\.mtl: .*: a bert model; the base is t5"):
        open_pool(str(root / "base"), sources, {"mtl": bert})
