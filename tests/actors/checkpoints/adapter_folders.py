"""Adapter folders as PEFT writes them, made without PEFT: quick, and of any content."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.families.registry import inspect

QV = ("q_proj", "v_proj")


def write_adapter(
    folder: Path,
    base: Path | str,
    *,
    seed: int = 0,
    rank: int = 2,
    layers: tuple[str, ...] = QV,
    size: float = 0.1,
    whole: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """An adapter of random factors of every layer of these names; `whole`: what it replaces."""
    draw = torch.Generator().manual_seed(seed)
    start, tensors = "base_model.model.vision_model.", {}
    for name, info in inspect(str(base), "base").tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.split(".")[-1] in layers:
            shapes = {"A": (rank, *info.shape[1:]), "B": (info.shape[0], rank)}
            if len(info.shape) == 4:
                shapes["B"] = (info.shape[0], rank, 1, 1)
            for part, shape in shapes.items():
                drawn = size * torch.randn(shape, generator=draw, dtype=torch.float64)
                tensors[f"{start}{module}.lora_{part}.weight"] = drawn.to(dtype)
    for name, tensor in (whole or {}).items():
        tensors[start + name] = tensor
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": [*layers]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder
