"""BERT and RoBERTa on paper: their configuration, their tensors, their names and their order.

Axes: V vocabulary, d hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.files.documents import shown
from fusion.errors import InputError

BERT, ROBERTA = "bert", "roberta"

DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""The configuration fields that the computation depends on, as BertConfig has them."""

OTHERS: Mapping[str, Mapping[str, Any]] = {
    BERT: {},
    ROBERTA: {"vocab_size": 50265, "pad_token_id": 1},
}
"""`model_type` -> defaults that differ from BERT's."""

LARGEST: Mapping[str, int] = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 14,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "intermediate_size": 1 << 16,
    "max_position_embeddings": 1 << 17,
    "type_vocab_size": 64,
}
"""Field -> the largest value that is taken."""

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
}
"""Field -> allowed values, of fields that make another model of the same tensors."""

DENSE = {BERT: "pooler.dense", ROBERTA: "classifier.dense"}
"""`model_type` -> layer [d, d] that the first token passes through before the classifier; tanh
follows."""

OUT = {BERT: "classifier", ROBERTA: "classifier.out_proj"}
"""`model_type` -> the classifier [C, d]."""

LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""Names of the first converted checkpoints -> today's."""


def canonical(key: str) -> str:
    """A tensor's name in a file -> its name in `BertModel`, or of the classifier.

    >>> canonical("bert.embeddings.LayerNorm.gamma"), canonical("classifier.bias")
    ('embeddings.LayerNorm.weight', 'classifier.bias')
    """
    for kind in (BERT, ROBERTA):
        key = key.removeprefix(f"{kind}.")
    for old, new in LEGACY:
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


def bert_fields(config: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The fields of a `config.json`, defaults filled in; and `model_type`.

    Args:
        config: of a model of type `bert` or `roberta`.
        file: for the message.

    Raises:
        InputError: a field that is no whole number from 1 to its largest where one is needed, a
            width that its heads do not divide, an epsilon that is none, an activation that is no
            name, a padding token outside of the vocabulary, relative positions, a decoder.
    """
    kind = config["model_type"]
    defaults = {**DEFAULTS, **OTHERS[kind]}
    fields = {name: config.get(name, default) for name, default in defaults.items()}
    for name, largest in LARGEST.items():
        if type(fields[name]) is not int or not 1 <= fields[name] <= largest:
            raise InputError(
                f"{file}: {name}: {shown(fields[name])}; 1 to {largest:,}, whole, needed"
            )
    for name, allowed in REFUSED.items():
        if config.get(name) not in allowed:
            raise InputError(f"{file}: {name}: {shown(config[name])}; {allowed[1]!r} allowed")
    check_fit(fields, kind, file)
    return {"model_type": kind, **fields}


def check_fit(fields: Mapping[str, Any], kind: str, file: str) -> None:
    """Raise InputError where fields do not fit each other, or are of another type."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise InputError(f"{file}: hidden_size: {width}; a multiple of the {heads} heads needed")
    epsilon, act = fields["layer_norm_eps"], fields["hidden_act"]
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1:
        raise InputError(f"{file}: layer_norm_eps: {shown(epsilon)}; a number from 0 to 1 needed")
    if not isinstance(act, str):
        raise InputError(f"{file}: hidden_act: {shown(act)}; the name of an activation needed")
    pad, most = fields["pad_token_id"], fields["vocab_size"]
    if kind == ROBERTA:  # positions are counted from it
        most = min(most, fields["max_position_embeddings"] - 1)
    if type(pad) is not int or not 0 <= pad < most:
        raise InputError(f"{file}: pad_token_id: {shown(pad)}; 0 to {most - 1:,}, whole, needed")


def encoder_tensors(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor of the encoder, in the library's own order.

    That order is the axis of layer-wise codings. Pooler and classifier are not part of the encoder.
    """
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    tensors: dict[str, tuple[int, ...]] = {}

    def table(name: str, rows: int) -> None:
        tensors[f"embeddings.{name}_embeddings.weight"] = (rows, width)

    def linear(name: str, into: int, out: int) -> None:
        tensors[f"{name}.weight"] = (out, into)
        tensors[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.bias"] = (width,)

    late = fields["model_type"] == ROBERTA  # its positions are defined after the norm
    table("word", fields["vocab_size"])
    if not late:
        table("position", fields["max_position_embeddings"])
    table("token_type", fields["type_vocab_size"])
    norm("embeddings.LayerNorm")
    if late:
        table("position", fields["max_position_embeddings"])
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", width, inner)
        linear(f"{layer}.output.dense", inner, width)
        norm(f"{layer}.output.LayerNorm")
    return tensors


def longest(fields: Mapping[str, Any]) -> int:
    """Tokens of the longest text that the model has positions for.

    >>> longest({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    512
    """
    start = fields["pad_token_id"] + 1 if fields["model_type"] == ROBERTA else 0
    return int(fields["max_position_embeddings"] - start)


def activations(fields: Mapping[str, Any], tokens: int) -> tuple[int, int, int]:
    """Elements of activations a text: (peak of a forward pass, kept for a backward pass, the same
    where each text has a model of its own).

    Forward counts, for one layer at a time, the residual stream, q, k, v and the MLP's hidden
    layer; backward what autograd keeps of every layer: 9 times the width, and twice the hidden
    layer. Merged layers whose rows are of several models keep two more inputs.

    Args:
        fields: of the model.
        tokens: of a text.
    """
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    depth = fields["num_hidden_layers"]
    return (
        tokens * (5 * width + inner),
        tokens * (9 * width + 2 * inner) * depth,
        tokens * (11 * width + 2 * inner) * depth,
    )
