"""Read a LoRA adapter's configuration with PEFT: whether it is a plain product, and its scale."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from actors.checkpoints.sources import ADAPTER_CONFIG
from actors.files.documents import read_json
from fusion.errors import InputError, reading

if TYPE_CHECKING:
    from peft import LoraConfig

PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` that leave the base's weights unchanged."""

BESIDE = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "trainable_token_indices",
    "layer_replication", "target_parameters", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config", "megatron_config",
)  # fmt: skip
"""Fields that, if set, change LoRA to something other than an added product, or add to it."""


def read_lora_config(folder: Path, name: str) -> LoraConfig:
    """Read `adapter_config.json` with PEFT.

    `fan_in_fan_out` has no effect on the layers of CLIP, as PEFT itself reports.

    Raises:
        InputError: not JSON, not LoRA, or LoRA with more than an added product.
    """
    file = folder / ADAPTER_CONFIG
    content = read_json(file, name)
    if content.get("peft_type") != "LORA":
        raise InputError(f"{name}: {file}: peft_type: {content.get('peft_type')!r}; allowed: LORA")
    for field in BESIDE:  # read from the file: PEFT drops fields that its version does not know
        if content.get(field):
            raise InputError(
                f"{name}: {file}: {field}: {content[field]!r}; allowed: unset (plain LoRA, whose"
                " task vectors are products of two factors)"
            )
    start = content.get("init_lora_weights", True)
    if not isinstance(start, str | bool | None) or start not in PLAIN_STARTS:
        raise InputError(
            f"{name}: {file}: init_lora_weights: {start!r} changes the base's weights; allowed:"
            f" {', '.join(json.dumps(each) for each in PLAIN_STARTS)} (PEFT converts to plain LoRA:"
            " save_pretrained(…, path_initial_model_for_weight_conversion=…))"
        )
    return parsed(folder, name)


def parsed(folder: Path, name: str) -> LoraConfig:
    """Parse the file with PEFT.

    Raises:
        InputError: fields that PEFT refuses, or ranks and scales that are not numbers.
    """
    from peft import LoraConfig

    file = folder / ADAPTER_CONFIG
    with reading(f"{name}: {file}: PEFT cannot read it"):
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
        numbers = {"r": config.r, "lora_alpha": config.lora_alpha}
        for field in ("rank_pattern", "alpha_pattern"):
            for key, value in (getattr(config, field) or {}).items():
                numbers[f"{field}.{key}"] = value
                re.compile(key)
    for field, value in numbers.items():
        whole = not field.startswith(("lora_alpha", "alpha_pattern"))
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < math.inf:
            kind = "positive whole number" if whole else "positive number"
            raise InputError(f"{name}: {file}: {field}: {value!r}; a {kind} needed")
    return config


def rank_and_scale(config: LoraConfig, module: str) -> tuple[int, float]:
    """r and s = α/r (`use_rslora`: α/√r) of one module, by `rank_pattern` and `alpha_pattern`.

    Args:
        config: the adapter's configuration.
        module: name of the module in the file, which the patterns are matched with.
    """
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)
