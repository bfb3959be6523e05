import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors.checkpoints.checkpoint import read
from actors.families.clip.architecture import PROJECTION
from actors.families.registry import inspect
from actors.pool.pool import open_pool, task_vectors
from actors.shards.resident_model import ResidentModel, blueprint
from fusion.errors import InputError
from fusion.task_vectors.coding import mix, one_hot


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((40, 60), (32, 32), (80, 33))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def embed(encoder: ResidentModel, images: list[Image.Image]) -> torch.Tensor:
    pixels = np.stack([encoder.inputs.preprocess.to_uint8(image) for image in images])
    return encoder.outputs({"pixels": torch.from_numpy(pixels)})


def reference(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder).eval()
    inputs = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    with torch.inference_mode():
        features: torch.Tensor = model.get_image_features(**inputs).pooler_output
    return features


def test_equals_clip_model(tiny: Any, tmp_path: Path, images: list[Image.Image]) -> None:
    folder = tiny.base(tmp_path / "base")
    found = embed(ResidentModel(folder), images)
    assert found.shape == (3, 24)
    torch.testing.assert_close(found, reference(folder, images), rtol=1e-5, atol=1e-6)


def test_half_precision_files_compute_in_float32(
    tiny: Any, tmp_path: Path, images: list[Image.Image]
) -> None:
    half = ResidentModel(tiny.base(tmp_path / "half", torch.float16))
    full = ResidentModel(tiny.base(tmp_path / "full"))
    assert {tensor.dtype for tensor in half.arena.values()} == {torch.float32}
    torch.testing.assert_close(embed(half, images), embed(full, images), rtol=1e-2, atol=1e-2)


def test_the_arena_is_live_and_canonical(
    tiny: Any, tmp_path: Path, images: list[Image.Image]
) -> None:
    encoder = ResidentModel(tiny.base(tmp_path / "base"))
    assert tuple(encoder.arena) == (*tiny.vision_order, PROJECTION)
    assert all(tensor.is_contiguous() for tensor in encoder.arena.values())
    before = embed(encoder, images)
    encoder.arena[PROJECTION].mul_(2)
    assert torch.equal(embed(encoder, images), before * 2)
    encoder.arena["post_layernorm.weight"].zero_()
    encoder.arena["post_layernorm.bias"].zero_()
    assert not embed(encoder, images).any()


def test_merging_in_place_makes_the_expert(
    tiny: Any, tmp_path: Path, pool_folders: tuple[str, dict[str, str]], images: list[Image.Image]
) -> None:
    pool = open_pool(*pool_folders)
    vectors, encoder = task_vectors(pool), ResidentModel(pool.base)
    mix(vectors.into(encoder.arena), one_hot(vectors.tasks, "t1"))
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    expert = tiny.base(tmp_path / "whole", **tower)
    torch.testing.assert_close(embed(encoder, images), reference(expert, images))


def test_a_base_without_projection(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=PROJECTION):
        ResidentModel(tiny.expert(tmp_path / "a", 1))


def test_images_of_another_size(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("32", "64"))
    with pytest.raises(InputError, match=r"\(64, 64\).*\(32, 32\)"):
        ResidentModel(folder)


@pytest.mark.parametrize("projected", [True, False])
def test_a_blueprint_needs_no_file(projected: bool, tiny: Any, tmp_path: Path) -> None:
    """What comes with the task vectors, and what does not, make the same model elsewhere."""
    base = inspect(str(tiny.base(tmp_path / "base")), "pool.base")
    wanted = ResidentModel(base, block=(1, 4))
    fused = [name for name in base.tensors if projected or name != PROJECTION]
    plan = pickle.loads(pickle.dumps(blueprint(base, fused)))
    assert list(plan.tensors) == ([] if projected else [PROJECTION])
    vectors = {name: tensor.clone() for name, tensor in read(base, fused)}
    shutil.rmtree(tmp_path / "base")
    found = ResidentModel(replace(plan, tensors={**vectors, **plan.tensors}), block=(1, 4))
    assert list(found.arena) == list(wanted.arena)
    assert all(torch.equal(found.arena[name], tensor) for name, tensor in wanted.arena.items())
    carry = {"hidden": torch.randn(2, 5, base.fields["hidden_size"])}
    assert torch.equal(found.run(carry)["output"], wanted.run(carry)["output"])
