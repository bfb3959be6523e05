"""Published gates of DAWE's original code, written against open_clip 2.0.2.

Their layer-wise columns are the state-dict keys of a wrapper around an open_clip model without its
text transformer. The rest of the text tower is still in the keys: six keys that have no effect on
images.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from actors.artifacts.gate_file import Manifest, build
from actors.families.clip.architecture import DEFAULTS, PROJECTION, vision_tensors
from actors.files.safetensors_header import read_whole
from fusion.errors import InputError, reading
from fusion.methods.learned.gate import Gate, regroup, shapes

STEM = (
    "class_embedding",
    "positional_embedding",
    "proj",
    "conv1.weight",
    "ln_pre.weight",
    "ln_pre.bias",
)

BLOCK = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)

OUTER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    PROJECTION: "proj",
}
"""Canonical name, or module -> open_clip's, outside the blocks."""

INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""The same inside a block."""

IN_PROJ = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""One tensor in open_clip, with q, k and v stacked, so the three share one coding."""

LAYERS = "encoder.layers."

CONVERT = (
    "which can run code when it is read; convert a file that you trust: python -c"
    ' "import torch; from safetensors.torch import save_file; save_file(torch.load(%r,'
    " map_location='cpu', weights_only=False).state_dict(), 'gate.safetensors')\""
)


def openclip_keys(blocks: int) -> tuple[str, ...]:
    """The wrapper's state dict: 8 + 12·blocks + 6 keys, in order.

    A module's own parameters come before those of its submodules; submodules are in the order of
    registration. The transformer of the text tower is deleted; its other keys surround the rest.

    >>> len(openclip_keys(12)), len(openclip_keys(24))
    (158, 302)
    """
    visual = [
        *STEM,
        *(f"transformer.resblocks.{index}.{key}" for index in range(blocks) for key in BLOCK),
        "ln_post.weight",
        "ln_post.bias",
    ]
    return (
        "model.positional_embedding",
        "model.text_projection",
        "model.logit_scale",
        *(f"model.visual.{key}" for key in visual),
        "model.token_embedding.weight",
        "model.ln_final.weight",
        "model.ln_final.bias",
    )


def canonical_sources(blocks: int) -> dict[str, str]:
    """Canonical tensor name -> the open_clip key whose coding it takes, in canonical order.

    Text leftovers appear nowhere; in_proj appears for q, k and v alike. `proj` is the transpose
    of `visual_projection.weight`, and that changes nothing: a coding is one scalar for a whole
    tensor, the same for the transposed one.

    >>> canonical_sources(12)["encoder.layers.3.self_attn.k_proj.bias"]
    'model.visual.transformer.resblocks.3.attn.in_proj_bias'
    """
    names = [*vision_tensors({**DEFAULTS, "num_hidden_layers": blocks}), PROJECTION]
    return {name: f"model.visual.{source(name)}" for name in names}


def source(name: str) -> str:
    """open_clip's key, under `model.visual.`, of a canonical name."""
    if name in OUTER:
        return OUTER[name]
    module, kind = name.rsplit(".", 1)
    if not name.startswith(LAYERS):
        return f"{OUTER[module]}.{kind}"
    index, part = module.removeprefix(LAYERS).split(".", 1)
    block = f"transformer.resblocks.{index}"
    return f"{block}.attn.in_proj_{kind}" if part in IN_PROJ else f"{block}.{INNER[part]}.{kind}"


def blocks_of(names: Sequence[str]) -> int:
    """Number of blocks of a tower with these canonical names.

    >>> blocks_of(["encoder.layers.0.layer_norm1.bias", "encoder.layers.1.layer_norm1.bias"])
    2
    """
    return len(
        {name.removeprefix(LAYERS).split(".")[0] for name in names if name.startswith(LAYERS)}
    )


def import_gate(
    tensors: Mapping[str, Tensor],
    *,
    tasks: tuple[str, ...],
    blocks: int,
    extractor: str,
    extractor_hash: str,
    preprocessing: str,
    steps: int = 1000,
    where: str = "published gate",
) -> tuple[Gate, Manifest]:
    """Convert the state dict of a published gate to a gate and its manifest.

    M outputs: K = len(tasks) for a task-wise gate; K·L for a layer-wise one, L = 14 + 12·blocks.
    Layer-wise columns get canonical names, for all tensors of the tower and the projection (`fit`
    drops those that a pool lacks); the coding of a tensor is the published one of its key.

    Args:
        tensors: `0.weight` [d, d], `0.bias` [d], `2.weight` [M, d], `2.bias` [M].
        tasks: the experts' names, in the order of training. The published eight: SUN397, Cars,
            RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD.
        blocks: number of blocks of its backbone: 12 for ViT-B, 24 for ViT-L.
        extractor: source of the extractor, for the manifest.
        extractor_hash: hash of the extractor's files, for the manifest.
        preprocessing: the extractor's preprocessing, for the manifest.
        steps: training steps; default 1000, the published value.
        where: start of each message.

    Raises:
        InputError: other tensors, or shapes that match neither layout.
    """
    width, outputs = sizes(tensors, where)
    keys = openclip_keys(blocks)
    layered = outputs == len(tasks) * len(keys)
    if not layered and outputs != len(tasks):
        raise InputError(
            f"{where}: tensor '2.weight': {outputs} outputs; {len(tasks)} tasks need"
            f" {len(tasks)} (task-wise) or {len(tasks) * len(keys)} (layer-wise: {len(keys)} keys"
            f" of {blocks} blocks)"
        )
    published = Manifest(
        method="dawe",
        extractor=extractor,
        extractor_hash=extractor_hash,
        preprocessing=preprocessing,
        width=width,
        tasks=tasks,
        grouping="layer" if layered else "task",
        keys=keys if layered else (),
        depth=2,
        scale=0.3,
        softmax=False,
        base_weight=False,
        steps=steps,
    )
    floats = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
    gate = build(floats, published, where)
    if not layered:
        return gate, published
    column = {key: index for index, key in enumerate(keys)}
    sources = canonical_sources(blocks)
    picked = regroup(gate, [column[key] for key in sources.values()])
    return picked, replace(published, keys=tuple(sources))


def sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """d and M of a published gate.

    Raises:
        InputError: other tensors, or shapes that contradict each other.
    """
    expected = tuple(shapes(1, 1, 2))
    if {*tensors} != {*expected}:
        raise InputError(f"{where}: tensors {sorted(tensors)}; {list(expected)} needed")
    last = tensors["2.weight"]
    if last.ndim != 2:
        raise InputError(f"{where}: tensor '2.weight': shape {list(last.shape)}; [M, d] needed")
    outputs, width = last.shape
    for name, shape in shapes(width, outputs, 2).items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"{where}: tensor {name!r}: shape {list(tensors[name].shape)};"
                f" {list(shape)} goes with '2.weight' {list(last.shape)}"
            )
    return width, outputs


def read_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published gate: a safetensors file, or a `.pt` with a state dict.

    Executes no code: a `.pt` is read by torch's restricted unpickler. The published files
    themselves are pickled modules, which are refused.

    Raises:
        InputError: missing, damaged, a pickled module, or not a state dict.
    """
    from safetensors.torch import load

    data = read_whole(path, str(path))
    if path.suffix == ".safetensors":
        with reading(f"{path}: truncated or not a safetensors file"):
            return dict(load(data))
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises undocumented exceptions on damaged bytes
        if "GLOBAL" in str(error):  # torch's word for a class that it refuses to build
            raise InputError(
                f"{path}: a pickled module or other object, {CONVERT % str(path)}"
            ) from None
        raise InputError(f"{path}: damaged, or not a file of torch.save") from None
    fits = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not fits:
        kind = type(content).__name__
        raise InputError(f"{path}: holds a {kind}; a state dict (name -> tensor) needed")
    return dict(content)
