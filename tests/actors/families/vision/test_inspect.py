"""Image classifiers from their headers: names, classes, faults by file and tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.data.images.preprocessor_config import read_classifier
from actors.families.registry import inspect
from actors.pool.pool import open_pool
from fusion.errors import InputError
from tests.actors.families.vision.models import CLASSES, KINDS, SIDE, Models


@pytest.fixture(params=KINDS)
def models(request: Any) -> Models:
    return Models(request.param)


def changed(folder: Path, **fields: Any) -> Path:
    """The folder with other fields in its configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def test_names_of_modules_are_those_of_files(models: Models, tmp_path: Path) -> None:
    base = inspect(str(models.write(tmp_path / "base")), "pool.base")
    state = {k: v.contiguous() for k, v in models.made().state_dict().items()}
    save_file(state, tmp_path / "base/model.safetensors")  # names of today's modules
    again = inspect(str(tmp_path / "base"), "pool.base")
    assert list(again.tensors) == list(base.tensors)
    assert list(again.rest) == list(base.rest)
    assert base.fields["labels"] == CLASSES
    assert len(base.buffers) == (len(base.rest) // 2)


def test_experts_have_the_base_s_classes(models: Models, tmp_path: Path) -> None:
    base = models.write(tmp_path / "base")
    other = models.write(tmp_path / "other", 1, 0.1, ("circle", "star", "square"))
    with pytest.raises(InputError) as error:
        open_pool(str(base), {"run": str(other)})
    line = str(error.value)
    assert f"{other}/config.json: id2label: class 1 is 'star'" in line
    assert "'square': another order of the same classes" in line
    more = models.write(tmp_path / "more", 1, 0.1, (*CLASSES, "line"))
    with pytest.raises(InputError, match=f"{more}/config.json: id2label: 4 classes; the base has"):
        open_pool(str(base), {"run": str(more)})
    assert "\n" not in line


def test_num_labels_and_fields_are_the_base_s(models: Models, tmp_path: Path) -> None:
    base = models.write(tmp_path / "base")
    wrong = changed(models.write(tmp_path / "wrong", 1, 0.1), num_labels=5)
    with pytest.raises(InputError, match=r"config.json: num_labels: 5; id2label has 3 classes"):
        open_pool(str(base), {"run": str(wrong)})
    act = changed(models.write(tmp_path / "act", 1, 0.1), hidden_act="silu")
    with pytest.raises(InputError, match=r"config.json: hidden_act: 'silu'; the base has"):
        open_pool(str(base), {"run": str(act)})


def test_a_body_is_no_base(models: Models, tmp_path: Path) -> None:
    from transformers import AutoModel

    base = models.write(tmp_path / "base")
    AutoModel.from_pretrained(base).save_pretrained(tmp_path / "body")
    assert inspect(str(tmp_path / "body"), "base").fields["labels"] == ()
    with pytest.raises(InputError, match="body: no classifier; it is fused"):
        open_pool(str(tmp_path / "body"), {"run": str(base)})


def test_missing_unknown_and_misshaped_tensors(models: Models, tmp_path: Path) -> None:
    base = models.write(tmp_path / "base")
    file = base / "model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.endswith(".bias") and "classifier" not in key)
    faults: dict[str, dict[str, torch.Tensor]] = {
        "missing": {k: v for k, v in state.items() if k != name},
        "not part of the model": {**state, "strange": state[name].clone()},
        "shape": {**state, name: torch.zeros(99)},
    }
    for words, tensors in faults.items():
        save_file(tensors, file)
        with pytest.raises(InputError, match=rf"model.safetensors: tensor '.*': {words}"):
            inspect(str(base), "pool.base")


def test_preprocessing_is_the_library_s(models: Models, tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = models.write(tmp_path / "base")
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=draw)
    image = Image.fromarray(pixels.numpy())
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    wanted = processor(image, return_tensors="pt").pixel_values
    ours = read_classifier(folder)
    found = ours.normalise(torch.from_numpy(ours.to_uint8(image))[None])
    assert found.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "image_processor_type 'Donut"),
        ({"image_processor_type": None}, "image_processor_type None; allowed: ViTImageProcessor"),
        ({"size": {"shortest_edge": 16}}, "height and width needed"),
        ({"do_center_crop": True}, "do_center_crop: false needed"),
    ],
)
def test_preprocessing_that_is_refused(about: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**Models("vit").processor(), **about}))
    with pytest.raises(InputError, match=message):
        read_classifier(tmp_path)
