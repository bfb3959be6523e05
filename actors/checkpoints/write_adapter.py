"""Write LoRA factors as PEFT does: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from actors.checkpoints.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from actors.files.safetensors_header import PEFT
from actors.training.lora import Lora, LoraFactors


def write_adapter(factors: LoraFactors, folder: Path, options: Lora, task_type: str) -> None:
    """Write an adapter that PEFT and `inspect_adapter` read.

    The configuration has the fields that decide the model. PEFT's own writer lists the targets in
    an order that changes from process to process, so that equal adapters would have unequal hashes;
    and it names the base's folder, which differs between machines: here the name is null.

    Args:
        factors: of the adapted layers, by the layers' names in a model of `transformers`.
        folder: an existing folder.
        options: which the factors were trained with.
        task_type: PEFT's name of the kind of model: "SEQ_2_SEQ_LM".
    """
    tensors = {
        f"{PEFT}{name}": tensor.detach().cpu().contiguous()
        for name, tensor in factors.tensors().items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    alpha = options.alpha
    config = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": options.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": options.rank,
        "target_modules": sorted(options.targets),
        "task_type": task_type,
        "use_rslora": False,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
