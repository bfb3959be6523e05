"""Image classifiers as chains: the library's own numbers, every tensor, merged layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.images.preprocessor_config import read_classifier
from actors.families.protocol import compute_all_rows
from actors.families.registry import family_in, inspect
from actors.pool.pool import open_pool, task_vectors
from actors.shards.messages import Weights
from actors.shards.resident_model import ResidentModel
from actors.shards.shard import Shard
from tests.actors.families.vision.models import KINDS, SIDE, Models


@pytest.fixture(params=KINDS)
def models(request: Any) -> Models:
    return Models(request.param)


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    return models.write(tmp_path / "base")


@pytest.fixture
def base(folder: Path) -> Checkpoint:
    return inspect(str(folder), "pool.base")


def images(count: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw)


def library(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Logits of `transformers` for the same images."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(read_classifier(folder).normalise(pixels)).logits
    return found


def test_every_tensor_is_in_one_segment(base: Checkpoint, models: Models) -> None:
    chain = family_in(base).segments(base)
    names = [name for link in chain for name in link.names.values()]
    running = [name for link in chain for name in link.running.values()]
    assert sorted(names) == sorted(base.tensors)
    assert sorted(running) == sorted(base.rest)
    assert bool(running) == models.resnet
    for link in chain:
        module = link.build()
        shapes = {link.names[key]: tuple(p.shape) for key, p in module.named_parameters()}
        assert shapes == {name: base.tensors[name].shape for name in link.names.values()}
        for own, name in link.running.items():
            assert tuple(module.get_buffer(own).shape) == base.rest[name].shape
        assert link.mlp is None or module.get_submodule(link.mlp) is not None


def test_the_chain_is_the_library_s_model(folder: Path, base: Checkpoint, models: Models) -> None:
    found = ResidentModel(base).outputs({"pixels": images()})
    torch.testing.assert_close(found, library(folder, images()), rtol=1e-5, atol=1e-6)
    if not models.resnet:
        model = ResidentModel(base)
        compute_all_rows(model.modules[-2], True)
        again = model.outputs({"pixels": images()})
        torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-6)


def test_blocks_in_a_row_are_the_whole_to_the_bit(base: Checkpoint) -> None:
    carry = {"pixels": images()}
    for at in range(len(family_in(base).segments(base))):
        carry = ResidentModel(base, block=(at, at + 1)).run(carry)
    assert torch.equal(carry["output"], ResidentModel(base).outputs({"pixels": images()}))


def test_merged_once_is_the_library_s_model_with_the_merged_weights(tmp_path: Path) -> None:
    models = Models("vit")
    base = models.write(tmp_path / "base")
    runs = [models.write(tmp_path / f"run_{i}", i + 1, 0.1) for i in range(2)]
    pool = open_pool(str(base), {run.name: str(run) for run in runs})
    merged = models.made()
    first, *others = (
        models.made().state_dict(),
        models.made(1, 0.1).state_dict(),
        models.made(2, 0.1).state_dict(),
    )
    merged.load_state_dict({k: v + sum(0.3 * (o[k] - v) for o in others) for k, v in first.items()})
    merged.save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    (tmp_path / "merged/preprocessor_config.json").write_text(
        (base / "preprocessor_config.json").read_text()
    )
    shard = Shard(pool.base, task_vectors(pool), {"task": torch.eye(3)})
    coded = Weights("", coding=torch.full((1, 2, 1), 0.3))
    found = shard.run_coded({"pixels": images()}, coded)["output"]
    wanted = library(tmp_path / "merged", images())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    each = torch.rand(5, 2, len(pool.groups), generator=torch.Generator().manual_seed(1))
    found = shard.run_coded({"pixels": images()}, Weights("", coding=each))["output"]
    for at in range(5):
        one = Weights("", coding=each[at : at + 1])
        alone = shard.run_coded({"pixels": images()[at : at + 1]}, one)["output"]
        torch.testing.assert_close(found[at], alone[0], rtol=1e-4, atol=1e-5)
