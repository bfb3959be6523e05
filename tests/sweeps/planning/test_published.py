"""The shipped configurations of the published models: valid, and planned at their true sizes.

Weights are files of holes: headers state the real shapes, and a plan reads no weight.
"""

import json
from pathlib import Path

import pytest
from rich.console import Console

from actors.cluster.planner import Node, Resources
from fusion.errors import InputError
from sweeps.cli import plan
from sweeps.cluster import ray_connection
from sweeps.spec.sweep import load, validate
from tests.sweeps.learning_pool import make_extractor
from tests.sweeps.planning.holes import write_holes
from tests.tiny_pool import write_tokenizer

CONFIGS = Path("sweeps/configs")
LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip


def hollow(folder: Path, vision: dict, full: bool) -> Path:
    """A CLIP folder in the hub's layout whose weights are a file of holes."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    width = 768 if vision else 512
    text = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 512,  # the tokens of `write_tokenizer` are bytes
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    with torch.device("meta"):
        kind = CLIPModel(config) if full else CLIPVisionModelWithProjection(_vision(config, width))
    shapes = {name: tensor.shape for name, tensor in kind.state_dict().items()}
    write_holes(folder / "model.safetensors", shapes)
    kind.config.save_pretrained(folder)
    about = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224},
             "crop_size": {"height": 224, "width": 224}, "resample": 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    if full:
        write_tokenizer(folder)
    return folder


def _vision(config, width):
    vision = config.vision_config
    vision.projection_dim = width
    return vision


@pytest.fixture(scope="module", params=["b32", "l14"])
def local(request, tiny_pool, tmp_path_factory):
    """The shipped spec with local folders for hub ids."""
    root = tmp_path_factory.mktemp(request.param)
    spec = load(CONFIGS / f"dawe_{request.param}.yaml").model_dump(mode="json")
    vision = LARGE if request.param == "l14" else {}
    spec["pool"]["base"] = str(hollow(root / "base", vision, full=True))
    expert = str(hollow(root / "expert", vision, full=False))
    spec["pool"]["experts"] = dict.fromkeys(spec["pool"]["experts"], expert)
    data = str(tiny_pool.root / "data" / "lines")
    for task in spec["tasks"].values():
        task |= {"dataset": data, "classnames": ["flat", "steep"], "templates": ["a {}."]}
    spec["methods"]["dawe"]["extractor"] = str(make_extractor(root / "resnet", 2048))
    return request.param, validate(spec, "spec.yaml")


def shown(spec, resources, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(ray_connection, "this_machine", lambda: resources)
    console = Console(width=160, record=True)
    plan.show(spec, tmp_path, console)
    return console.export_text()


def machine(gpus: int, gigabytes: int) -> Resources:
    return Resources((Node(16, gpus, 128 * 10**9, gigabytes * 10**9),))


def test_one_large_gpu_holds_a_whole_replica(local, tmp_path, monkeypatch):
    _, spec = local
    said = shown(spec, machine(1, 80), tmp_path, monkeypatch)
    assert "1 whole replica(s) on GPU" in said
    assert "8 experts" in said


def test_small_gpus_hold_shards_or_say_what_would(local, tmp_path, monkeypatch):
    size, spec = local
    if size == "b32":
        assert "whole replica(s) on GPU" in shown(spec, machine(2, 16), tmp_path, monkeypatch)
        return
    said = shown(spec, machine(4, 16), tmp_path, monkeypatch)
    assert "shards (segments 0-" in said
    with pytest.raises(InputError, match=r"placement.*16\.00 GB.*would") as refused:
        shown(spec, machine(1, 16), tmp_path, monkeypatch)
    assert "\n" not in str(refused.value)
