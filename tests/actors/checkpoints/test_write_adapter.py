"""Adapters as PEFT lays them out: bytes that depend on the factors alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from actors.checkpoints.lora_config import rank_and_scale, read_lora_config
from actors.checkpoints.write_adapter import write_adapter
from actors.training.lora import Lora, LoraFactors

KIND = "FEATURE_EXTRACTION"


def written(folder: Path, targets: tuple[str, ...], alpha: float = 3.0) -> Path:
    draw = torch.Generator().manual_seed(0)
    pair = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((2, 4), (3, 2))]
    folder.mkdir()
    options = Lora(rank=2, alpha=alpha, targets=targets)
    write_adapter(LoraFactors({"block.0.q": (pair[0], pair[1])}), folder, options, KIND)
    return folder


def test_peft_reads_the_configuration(tmp_path: Path) -> None:
    config = read_lora_config(written(tmp_path / "a", ("q", "v")), "expert")
    assert rank_and_scale(config, "block.0.q") == (2, 1.5)
    assert (config.target_modules, config.lora_dropout, config.bias) == ({"q", "v"}, 0.1, "none")
    about = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert about["lora_alpha"] == 3
    assert isinstance(about["lora_alpha"], int)
    other = read_lora_config(written(tmp_path / "b", ("q",), alpha=2.5), "expert")
    assert rank_and_scale(other, "block.0.q") == (2, 1.25)


def test_tensors_have_peft_s_names(tmp_path: Path) -> None:
    found = load_file(written(tmp_path / "a", ("q",)) / "adapter_model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == {
        "base_model.model.block.0.q.lora_A.weight": (2, 4),
        "base_model.model.block.0.q.lora_B.weight": (3, 2),
    }


def test_equal_adapters_have_equal_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a", ("v", "q")), written(tmp_path / "b", ("q", "v"))
    names = sorted(file.name for file in one.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
