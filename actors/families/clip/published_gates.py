"""Published gates of DAWE's original code, written against open_clip 2.0.2.

Their layer-wise columns are the state-dict keys of a wrapper around an open_clip model without its
text transformer. The rest of the text tower is still in the keys: six keys that have no effect on
images.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.artifacts.published_gate import PublishedLayout
from actors.families.clip.architecture import DEFAULTS, PROJECTION, vision_tensors

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


def published_layout(blocks: int) -> PublishedLayout:
    """Order of the outputs of layer-wise gates for a tower of so many blocks.

    12 of ViT-B, 24 of ViT-L: L = 14 + 12·blocks.
    """
    keys = openclip_keys(blocks)
    return PublishedLayout(keys, canonical_sources(blocks), f"{len(keys)} keys of {blocks} blocks")
