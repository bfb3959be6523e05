import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.families.images.resnet_architecture import resnet_fields, resnet_tensors
from actors.gate_features.extractor import (
    load_extractor,
    open_extractor,
)
from actors.shards.resident_model import ResidentModel
from fusion.errors import InputError
from tests.actors.conftest import DIM, SIZE, Tiny
from tests.refusals import one_line

SMALL = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 20],
    "depths": [1, 2, 1],
    "layer_type": "basic",
}
PROCESSOR = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 28,
}
"""As microsoft/resnet-18 has it, but for the size."""


def write_resnet(folder: Path, kind: str = "ResNetForImageClassification", **config: Any) -> Path:
    """A random ResNet in the hub's layout, BatchNorm statistics included."""
    import transformers

    torch.manual_seed(0)
    shape = {**SMALL, **config}
    model = getattr(transformers, kind)(transformers.ResNetConfig(**shape, num_labels=5))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    return write_resnet(tmp_path / "resnet")


def pixels(count: int = 5, size: int = 28) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("kind", ["ResNetForImageClassification", "ResNetModel"])
@pytest.mark.parametrize(
    "config", [{}, {"layer_type": "bottleneck", "downsample_in_first_stage": True}]
)
def test_features_are_the_pooled_last_stage(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    from transformers import ResNetModel

    folder = write_resnet(tmp_path / "resnet", kind, **config)
    extractor = open_extractor(str(folder), "gate.extractor")
    assert (extractor.kind, extractor.width, extractor.folder) == ("resnet", 20, folder)
    extract = load_extractor(extractor)
    found = extract({"pixels": pixels()})
    model = ResNetModel.from_pretrained(folder).eval()
    with torch.no_grad():
        images = extractor.inputs.preprocess.normalise(pixels())
        expected = model(pixel_values=images).last_hidden_state.mean((2, 3))
    assert (found.shape, found.dtype) == ((5, 20), torch.float32)
    assert not found.requires_grad
    assert not found.is_inference()
    torch.testing.assert_close(found, expected)
    assert found.std() > 0


def test_batch_norm_neither_reads_nor_learns_the_batch(resnet: Path) -> None:
    extract = load_extractor(open_extractor(str(resnet), "x"))
    first = extract({"pixels": pixels()})
    extract({"pixels": 255 - pixels(50)})
    assert torch.equal(extract({"pixels": pixels()}), first)
    torch.testing.assert_close(extract({"pixels": pixels()[:1]}), first[:1])


def test_half_precision_on_disk_is_computed_in_float32(resnet: Path) -> None:
    full = load_extractor(open_extractor(str(resnet), "x"))({"pixels": pixels()})
    file = resnet / "model.safetensors"
    state = load_file(file)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, file, {"format": "pt"})
    config = json.loads((resnet / "config.json").read_text()) | {"dtype": "float16"}
    (resnet / "config.json").write_text(json.dumps(config))
    found = load_extractor(open_extractor(str(resnet), "x"))({"pixels": pixels()})
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4}, 512),
        ({}, 2048),
        ({"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 3]}, 8),
    ],
    ids=["resnet-18", "resnet-50", "equal stages"],
)
def test_the_tensors_are_those_of_transformers(config: dict[str, Any], width: int) -> None:
    from transformers import ResNetConfig, ResNetModel

    with torch.device("meta"):
        state = ResNetModel(ResNetConfig(**config)).state_dict()
    expected = {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k}
    fields = resnet_fields(config, "config.json")
    assert resnet_tensors(fields) == expected
    assert fields["hidden_sizes"][-1] == width


def test_the_fingerprint_is_of_all_that_features_depend_on(resnet: Path, tmp_path: Path) -> None:
    import shutil

    one = open_extractor(str(resnet), "x").fingerprint
    copy = shutil.copytree(resnet, tmp_path / "copy")
    assert open_extractor(str(copy), "y").fingerprint == one
    assert open_extractor(str(copy), "y", squash=True).fingerprint != one
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps(PROCESSOR | {"image_mean": [0.5, 0.5, 0.5]}))
    assert open_extractor(str(copy), "y").fingerprint != one
    file.write_text(json.dumps(PROCESSOR))
    state = load_file(copy / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, copy / "model.safetensors", {"format": "pt"})
    assert open_extractor(str(copy), "y").fingerprint != one


def test_squash_is_to_the_size_of_the_extractor(resnet: Path) -> None:
    plain, squashed = (open_extractor(str(resnet), "x", squash=on) for on in (False, True))
    assert plain.inputs.preprocess.squash is None
    assert squashed.inputs.preprocess == replace(plain.inputs.preprocess, squash=(28, 28))


def test_a_clip_gives_its_projected_embeddings(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    extractor = open_extractor(str(folder), "gate.extractor")
    assert (extractor.kind, extractor.width) == ("clip", DIM)
    images = pixels(3, SIZE)
    found = load_extractor(extractor)({"pixels": images})
    assert torch.equal(found, ResidentModel(folder).outputs({"pixels": images}))
    assert not found.is_inference()


def edit(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "swin"},
            "model_type 'swin'; an extractor: resnet, clip, clip_vision_model",
        ),
        ({"hidden_sizes": []}, "hidden_sizes: []; a list of whole numbers needed"),
        ({"hidden_sizes": [8, 12]}, "[[8, 12], [1, 2, 1]]; one of each a stage needed"),
        ({"depths": [1, 0, 1]}, "depths: [1, 0, 1]; positive whole numbers needed"),
        ({"embedding_size": "8"}, "embedding_size: '8'; positive whole numbers needed"),
        ({"layer_type": "odd"}, "layer_type: 'odd'; allowed: ['basic', 'bottleneck']"),
        ({"num_channels": 1}, "num_channels: 1; allowed: [3]"),
        ({"hidden_sizes": [8, 12, 24]}, "[20, 12, 3, 3]; "),
        ({"depths": [1, 3, 1]}, "tensor 'encoder.stages.1.layers.2."),
        ({"depths": [1, 1, 1]}, "tensor 'resnet.encoder.stages.1.layers.1."),
    ],
)
def test_configurations_that_are_refused(
    resnet: Path, change: dict[str, Any], message: str
) -> None:
    edit(resnet, **change)
    refused(resnet, message)


def refused(folder: Path, message: str) -> None:
    with one_line(str(folder), message, start="gate.extractor: "):
        open_extractor(str(folder), "gate.extractor")


def test_files_that_are_refused(resnet: Path, tiny: Tiny, tmp_path: Path) -> None:
    weights = resnet / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused(resnet, "truncated or not a safetensors file")
    weights.unlink()
    refused(resnet, "no model.safetensors")
    (resnet / "pytorch_model.bin").write_bytes(b"")
    refused(resnet, "from transformers import ResNetModel")
    weights.write_bytes(whole)
    (resnet / "config.json").write_text("[]")
    refused(resnet, "not a JSON object")
    (resnet / "config.json").unlink()
    refused(resnet, "config.json: missing")
    refused(tiny.expert(tmp_path / "expert", 0), "no visual_projection.weight")
    with pytest.raises(InputError, match=r"gate\.extractor: '/no/such': no such folder"):
        open_extractor("/no/such", "gate.extractor")
