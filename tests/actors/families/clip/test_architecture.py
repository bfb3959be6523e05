import json
from pathlib import Path
from typing import Any

import pytest

from actors.families.clip.architecture import (
    DEFAULTS,
    TEXT_DEFAULTS,
    text_fields,
    text_tensors,
    vision_fields,
    vision_tensors,
)
from actors.families.clip.build import check_towers, clip_config, empty, weights
from actors.families.registry import inspect
from fusion.errors import InputError
from tests.refusals import one_line


def test_names_shapes_and_order_are_those_of_transformers(tiny: Any) -> None:
    fields = vision_fields(tiny.config, "config.json")
    tensors = vision_tensors(fields)
    assert tuple(tensors) == tiny.vision_order
    assert tensors == {name: tuple(tensor.shape) for name, tensor in tiny.vision().items()}


@pytest.mark.parametrize(
    ("layers", "width", "inner", "patch", "parameters", "count"),
    [
        (12, 768, 3072, 32, 87_456_000, 199),
        (12, 768, 3072, 16, 85_799_424, 199),
        (24, 1024, 4096, 14, 303_179_776, 391),
    ],
)
def test_the_published_models(
    layers: int, width: int, inner: int, patch: int, parameters: int, count: int
) -> None:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    tensors = vision_tensors({**DEFAULTS, **sizes, "patch_size": patch})
    total = 0
    for shape in tensors.values():
        size = 1
        for edge in shape:
            size *= edge
        total += size
    assert (total, len(tensors)) == (parameters, count)


def test_defaults_are_those_of_transformers() -> None:
    from transformers import CLIPTextConfig, CLIPVisionConfig

    for config, defaults in ((CLIPVisionConfig(), DEFAULTS), (CLIPTextConfig(), TEXT_DEFAULTS)):
        assert {name: getattr(config, name) for name in defaults} == defaults


def test_tensors_of_the_text_tower_are_those_of_transformers(tiny: Any, tmp_path: Path) -> None:
    import torch
    from transformers import CLIPTextModel

    base = inspect(str(tiny.base(tmp_path / "base")), "pool.base")
    tower = empty(CLIPTextModel, clip_config(base).text_config, "cpu", torch.float32)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights(tower).items()}
    assert text_tensors(text_fields(base.config, "config.json")) == shapes


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_an_unknown_activation(tiny: Any, tmp_path: Path, section: str) -> None:
    folder = tiny.base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config[section]["hidden_act"] = "qick_gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with one_line("unknown activation 'qick_gelu'", start="pool.base: "):
        check_towers(inspect(str(folder), "pool.base"))


def test_a_field_that_is_no_number() -> None:
    config = {"model_type": "clip_vision_model", "hidden_size": "wide"}
    with pytest.raises(
        InputError, match=r"c.json: hidden_size: 'wide'; 1 to 16,384, whole, needed"
    ):
        vision_fields(config, "c.json")


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", [10**9, 0])
def test_sizes_of_the_text_tower_are_bounded(
    tiny: Any, tmp_path: Path, field: str, value: int
) -> None:
    """All of its layers would be built: without end, and without a weight read."""
    folder = tiny.base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with one_line(f"text_config: {field}: {value}; 1 to ", start="pool.base: "):
        check_towers(inspect(str(folder), "pool.base"))
