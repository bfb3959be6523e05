"""Sort an adapter's tensors by name: factors, initial factors, whole tensors.

Names are those that PEFT writes. Linearised adapters are laid out as by FusionBench
(`fusion_bench/models/linearized/vision_model.py`): each LoRA layer has its trainable parameters
under `<layer>.model.`, and the initial value of each as `<layer>.params0_values.<i>`, where i is
its position among all parameters of the layer: base weight, base bias (if there is one), A, B.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.checkpoints.missing_model import elsewhere, instead
from actors.checkpoints.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, LINEARIZED_WEIGHTS
from actors.files.safetensors_header import PEFT, TensorInfo
from fusion.errors import InputError

PICKLED = ("adapter_model.bin", "linearized_adapter_model.bin")

FACTOR = re.compile(
    r"(?P<module>.+?)(?P<linear>\.model)?\.lora_(?P<table>embedding_)?(?P<part>[AB])"
    r"(\.(?!weight$)\w+)?(\.weight)?"
)
"""`….q_proj.lora_A.weight`; for an embedding `….lora_embedding_A`; if linearised, the wrapped
layer's own names: `….q_proj.model.lora_A.default.weight`."""

STORED = re.compile(r"(?P<module>.+)\.params0_values\.(?P<index>\d+)")
"""φ₀: the layer's initial parameters, by position among all of its parameters."""

WHOLE = re.compile(r"(\.model)?\.base_layer(?=\.)|\.modules_to_save(\.default)?(?=\.)")
"""Part of the names of tensors that adapters bring whole."""

Parts = dict[str, TensorInfo]
"""Factors of one layer: "A" and "B" (embeddings: "embedding_A"), and "A0", "B0" if linearised."""


def weights_file(folder: Path, name: str) -> Path:
    """The single safetensors file of an adapter.

    Raises:
        InputError: none, two, a pickle, or a whole model beside it.
    """
    there = [file for file in (ADAPTER_WEIGHTS, LINEARIZED_WEIGHTS) if is_there(folder / file)]
    models = [file for file in ("model.safetensors", INDEX) if (folder / file).exists()]
    if models:
        raise InputError(
            f"{name}: {folder}: {ADAPTER_CONFIG} and {models[0]}: an adapter or a model? keep one"
        )
    if len(there) == 2:
        raise InputError(f"{name}: {folder}: {' and '.join(there)}: which is meant? keep one")
    if there:
        return folder / there[0]
    pickles = [file for file in PICKLED if (folder / file).exists()]
    if pickles:
        raise InputError(
            f"{name}: {folder}: {pickles[0]} is a pickle, which can run code when it is read;"
            " safetensors only. Load an adapter that you trust with PEFT and save it anew:"
            " save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )
    raise InputError(
        f"{name}: {folder}: no {ADAPTER_WEIGHTS} and no {LINEARIZED_WEIGHTS}"
        f"{instead(folder) or elsewhere(folder)}"
    )


def is_there(file: Path) -> bool:
    """Whether a folder lists this name, even as a broken link."""
    return file.exists() or file.is_symlink()


def sort_out(
    found: Mapping[str, TensorInfo], file: Path, name: str, canonical: Callable[[str], str]
) -> tuple[dict[str, Parts], dict[str, TensorInfo]]:
    """Module (by its name in the file) -> its factors; canonical name -> whole tensors.

    Raises:
        InputError: no factors; a tensor twice; φ₀ without its layer's factors, or factors without
            φ₀ in a linearised adapter.
    """
    linearized = file.name == LINEARIZED_WEIGHTS
    parts: dict[str, Parts] = {}
    stored: dict[str, dict[int, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    copies: dict[str, TensorInfo] = {}
    for key, info in found.items():
        short = key.removeprefix(PEFT)
        if match := FACTOR.fullmatch(short):
            kept, at = (
                parts.setdefault(match["module"], {}),
                f"{match['table'] or ''}{match['part']}",
            )
        elif linearized and (match := STORED.fullmatch(short)):
            stored.setdefault(match["module"], {})[int(match["index"])] = info
            continue
        elif ".original_module." in key:
            continue  # the base's own tensor, which PEFT keeps beside a module that it trains whole
        else:  # PEFT may write the latter twice, under both names
            kept = copies if ".modules_to_save." in key else whole
            at = canonical(WHOLE.sub("", short))
        if at in kept:
            raise InputError(
                f"{name}: {file}: tensor {key!r}: there twice, also as {kept[at].key!r}"
            )
        kept[at] = info
    if not parts:
        raise InputError(f"{name}: {file}: holds no LoRA factor (lora_A, lora_B)")
    if linearized:
        join(parts, stored, name)
    return parts, {**copies, **whole}


def join(
    parts: dict[str, Parts], stored: Mapping[str, Mapping[int, TensorInfo]], name: str
) -> None:
    """Add each layer's initial factors to its factors: the last two of its stored parameters.

    Raises:
        InputError: one without the other.
    """
    for module in sorted({*parts, *stored}):
        initial = stored.get(module, {})
        last = [initial[index] for index in sorted(initial)][-2:]
        if module not in parts or len(last) != 2:
            info = next(iter((*parts.get(module, {}).values(), *last)))
            raise InputError(
                f"{name}: {info.file}: tensor {info.key!r}: a linearised layer's lora_A and lora_B"
                " and the initial values of both (params0_values) are needed"
            )
        parts[module] |= {"A0": last[0], "B0": last[1]}
