"""T5 on paper: its configuration, its tensors, their names, their order, and the work of its parts.

v1.0 models have a ReLU feed-forward, and one table for embeddings and output. v1.1 and Flan models
have a gated feed-forward and an output table of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.files.documents import shown
from fusion.errors import InputError

SHARED, LM_HEAD = "shared.weight", "lm_head.weight"
"""The embedding table, and the output projection of models that have one of their own."""

SELF, CROSS, FEED_FORWARD = "SelfAttention", "EncDecAttention", "DenseReluDense"
"""Names of a block's sublayers, as `transformers` has them."""

TABLES = {
    side: f"{side}.block.0.layer.0.{SELF}.relative_attention_bias.weight"
    for side in ("encoder", "decoder")
}
"""Side -> its table of relative position biases [buckets, heads], which all its blocks use."""

ALIASES = tuple(f"{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
"""Other names of `shared`, which some files hold as well."""

UNUSED = f"decoder.block.0.layer.1.{CROSS}.relative_attention_bias.weight"
"""In files of early versions; `transformers` does not read it."""

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
"""The configuration fields that the computation depends on, as `T5Config` has them."""

LARGEST: Mapping[str, int] = {
    "vocab_size": 1 << 20,
    "d_model": 1 << 14,
    "d_kv": 1 << 12,
    "d_ff": 1 << 17,
    "num_layers": 256,
    "num_decoder_layers": 256,
    "num_heads": 1024,
    "relative_attention_num_buckets": 1 << 10,
    "relative_attention_max_distance": 1 << 16,
}
"""Field -> the largest value that is taken. Lists as long as the layers are made before any weight
is looked at."""

GATED = "gated-gelu"

SOURCE_TOKENS, NODES = 128, 8
"""Tokens of a prompt, and nodes of a tree of answers, that memory is planned for. Prompts of GLUE
have 29 to 66 tokens in the mean."""

TYPICAL_TOKENS, TYPICAL_NODES = 64, 3
"""The same for the work of a row, by which models are cut into shards."""


def t5_fields(config: Mapping[str, Any], tied: bool, file: str) -> dict[str, Any]:
    """The fields of a `config.json`, defaults filled in.

    Beside those of the file: `tied`, whether embeddings and output share a table; `scaled`,
    whether the decoder's output is multiplied by d_model^-½, as `transformers` reads it: by
    `scale_decoder_outputs`, else unless `tie_word_embeddings` is false.

    Args:
        config: of a T5ForConditionalGeneration.
        tied: whether the files have no output table. What the configuration says of ties is not
            asked: `transformers` 5 writes `true` whatever the model.
        file: for the message.

    Raises:
        InputError: a number that is no whole number from 1 to its largest, an epsilon that is none,
            an unknown feed-forward, a token that is not in the vocabulary.
    """
    fields = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    depth = config.get("num_decoder_layers")
    fields["num_decoder_layers"] = fields["num_layers"] if depth is None else depth
    start = config.get("decoder_start_token_id")
    fields["decoder_start_token_id"] = fields["pad_token_id"] if start is None else start
    for name, largest in LARGEST.items():
        if type(fields[name]) is not int or not 1 <= fields[name] <= largest:
            raise InputError(
                f"{file}: {name}: {shown(fields[name])}; 1 to {largest:,}, whole, needed"
            )
    check_fit(fields, file)
    scaled = config.get("scale_decoder_outputs")
    if scaled is None:
        scaled = config.get("tie_word_embeddings") is not False
    if not isinstance(scaled, bool):
        raise InputError(f"{file}: scale_decoder_outputs: {shown(scaled)}; true or false needed")
    return {**fields, "tied": tied, "scaled": scaled}


def check_fit(fields: Mapping[str, Any], file: str) -> None:
    """Raise InputError where fields do not fit each other, or are of another type."""
    epsilon, act = fields["layer_norm_epsilon"], fields["feed_forward_proj"]
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1:
        raise InputError(
            f"{file}: layer_norm_epsilon: {shown(epsilon)}; a number from 0 to 1 needed"
        )
    if act not in ("relu", GATED):
        raise InputError(f"{file}: feed_forward_proj: {shown(act)}; relu or {GATED} allowed")
    if fields["relative_attention_num_buckets"] % 4:
        raise InputError(
            f"{file}: relative_attention_num_buckets: {fields['relative_attention_num_buckets']};"
            " a multiple of 4 needed"
        )
    for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if type(fields[name]) is not int or not 0 <= fields[name] < fields["vocab_size"]:
            raise InputError(
                f"{file}: {name}: {shown(fields[name])}; a token of the vocabulary, 0 to"
                f" {fields['vocab_size'] - 1}, needed"
            )


def inner_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The layers into a feed-forward: `wi_0` (activated) and `wi_1`, or `wi`."""
    return ("wi_0", "wi_1") if fields["feed_forward_proj"] == GATED else ("wi",)


def t5_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor, in the order of `T5ForConditionalGeneration`.

    That order is the axis of layer-wise codings. `lm_head` is there where it is not tied.
    """
    width, wide = fields["d_model"], fields["d_kv"] * fields["num_heads"]
    tensors: dict[str, tuple[int, ...]] = {SHARED: (fields["vocab_size"], width)}

    def attention(layer: str, kind: str, table: bool) -> None:
        for part in ("q", "k", "v"):
            tensors[f"{layer}.{kind}.{part}.weight"] = (wide, width)
        tensors[f"{layer}.{kind}.o.weight"] = (width, wide)
        if table:
            buckets = fields["relative_attention_num_buckets"]
            tensors[f"{layer}.{kind}.relative_attention_bias.weight"] = (
                buckets,
                fields["num_heads"],
            )
        tensors[f"{layer}.layer_norm.weight"] = (width,)

    def feed_forward(layer: str) -> None:
        for part in inner_names(fields):
            tensors[f"{layer}.{FEED_FORWARD}.{part}.weight"] = (fields["d_ff"], width)
        tensors[f"{layer}.{FEED_FORWARD}.wo.weight"] = (width, fields["d_ff"])
        tensors[f"{layer}.layer_norm.weight"] = (width,)

    for side, depth in sides(fields).items():
        for index in range(depth):
            block = f"{side}.block.{index}.layer"
            attention(f"{block}.0", SELF, table=index == 0)
            if side == "decoder":
                attention(f"{block}.1", CROSS, table=False)
            feed_forward(f"{block}.{2 if side == 'decoder' else 1}")
        tensors[f"{side}.final_layer_norm.weight"] = (width,)
    if not fields["tied"]:
        tensors[LM_HEAD] = (fields["vocab_size"], width)
    return tensors


def sides(fields: Mapping[str, Any]) -> dict[str, int]:
    """Encoder and decoder -> their numbers of blocks."""
    return {"encoder": fields["num_layers"], "decoder": fields["num_decoder_layers"]}


def input_of(name: str) -> str:
    """The weight under whose name statistics of a layer's input are kept.

    q's for q, k and v of self-attention; k's for k and v of cross-attention, which read the
    encoder's output; `wi_0` for `wi_1`.
    """
    for kind, parts, first in (
        (SELF, ("k", "v"), "q"),
        (CROSS, ("v",), "k"),
        (FEED_FORWARD, ("wi_1",), "wi_0"),
    ):
        for part in parts:
            name = name.replace(f".{kind}.{part}.", f".{kind}.{first}.")
    return name


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    return name == LM_HEAD or (
        any(f".{k}." in name for k in (SELF, CROSS, FEED_FORWARD))
        and ("relative_attention_bias" not in name)
    )


def activations(fields: Mapping[str, Any]) -> tuple[int, int, int]:
    """Elements of activations a row: (peak of a forward pass, kept for a backward pass, the same
    where each row has a model of its own).

    For `SOURCE_TOKENS` and `NODES`. A block keeps the residual stream, its norm, q, k, v, the
    attention's bias and output, and the feed-forward's hidden layers with what their product
    keeps; the output keeps the logits of every node twice.
    """
    width, wide, inner = fields["d_model"], fields["d_kv"] * fields["num_heads"], fields["d_ff"]
    hidden = (4 if fields["feed_forward_proj"] == GATED else 2) * inner
    n, m, heads = SOURCE_TOKENS, NODES, fields["num_heads"]
    encoder = n * (6 * width + 5 * wide + hidden) + 2 * heads * n * n
    decoder = m * (9 * width + 7 * wide + hidden) + 2 * n * wide + 2 * heads * m * (n + m)
    output = 3 * m * fields["vocab_size"]
    blocks = fields["num_layers"] * encoder + fields["num_decoder_layers"] * decoder
    return (
        max(encoder, output) + (n + m) * width,
        blocks + output,
        blocks + output + fields["num_layers"] * n * 2 * width,
    )


def block_work(fields: Mapping[str, Any], side: str) -> float:
    """Multiplications a row of one block, for `TYPICAL_TOKENS` and `TYPICAL_NODES`."""
    width, wide, inner = fields["d_model"], fields["d_kv"] * fields["num_heads"], fields["d_ff"]
    n, m = TYPICAL_TOKENS, TYPICAL_NODES
    feed_forward = (len(inner_names(fields)) + 1) * width * inner
    if side == "encoder":
        return float(n * (4 * width * wide + feed_forward) + 2 * n * n * wide)
    memory = n * 2 * width * wide
    return float(m * (6 * width * wide + feed_forward) + memory + 2 * m * (n + m) * wide)


def output_work(fields: Mapping[str, Any]) -> float:
    """Multiplications a row of the output projection."""
    return float(TYPICAL_NODES * fields["vocab_size"] * fields["d_model"])
