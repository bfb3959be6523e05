"""BERT and RoBERTa as a chain of segments: what shards are cut from.

Activations, axes B rows, n tokens, d width: {"ids": int64 [B, n], "mask": bool [B, n], "types":
int64 [B, n]} first, {"hidden": [B, n, d], "mask"} between segments, {"output"} last: logits [B, C]
of a model with a classifier, else its pooled first token [B, d].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.bert.architecture import DENSE, OUT, ROBERTA
from actors.families.protocol import OUTPUT, Activations, Segment, check_untied, segment
from fusion.errors import InputError


class Embed(nn.Module):
    """Token ids to the first hidden states: words, positions, token types, norm."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width = fields["hidden_size"]
        self.before: int | None = (
            fields["pad_token_id"] if fields["model_type"] == ROBERTA else None
        )
        """RoBERTa's position of padding, after which those of real tokens begin."""
        self.word_embeddings = nn.Embedding(fields["vocab_size"], width)
        self.position_embeddings = nn.Embedding(fields["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(fields["type_vocab_size"], width)
        self.typed = fields["type_vocab_size"] > 1
        self.LayerNorm = nn.LayerNorm(width, eps=fields["layer_norm_eps"])
        self.dtype = torch.float32
        """Of everything computed; set by who holds the weights."""

    def forward(self, given: Activations) -> Activations:
        """{"ids", "mask"[, "types"]} -> {"hidden", "mask"}; without types all tokens are of type
        0, as they are of a model that has one type."""
        ids, mask = given["ids"], given["mask"]
        types = given["types"] if self.typed and "types" in given else torch.zeros_like(ids[:1])
        hidden = self.word_embeddings(ids).to(self.dtype)
        hidden = hidden + self.token_type_embeddings(types).to(self.dtype)
        hidden = hidden + self.position_embeddings(self.positions(mask)).to(self.dtype)
        return {"hidden": self.LayerNorm(hidden), "mask": mask}

    def positions(self, mask: Tensor) -> Tensor:
        """Positions [1, n], or [B, n] where they are counted from the padding's."""
        if self.before is None:
            return torch.arange(mask.shape[1], device=mask.device)[None]
        return mask.cumsum(1) * mask + self.before


class FeedForward(nn.Module):
    """W₂·act(W₁x + b₁) + b₂."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        width, inner = fields["hidden_size"], fields["intermediate_size"]
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.act = ACT2FN[fields["hidden_act"]]

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, n, d] -> [B, n, d]."""
        out: Tensor = self.down(self.act(self.up(hidden)))
        return out


class Layer(nn.Module):
    """One transformer layer, norms after the residual sums; attention is `transformers`' own."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertAttention

        kept = {
            name: value for name, value in fields.items() if name not in ("model_type", "labels")
        }
        config = BertConfig(**kept)
        config._attn_implementation = "sdpa"  # a layer built alone is not asked which it would like
        self.attention = BertAttention(config)
        self.mlp = FeedForward(fields)
        self.norm = nn.LayerNorm(fields["hidden_size"], eps=fields["layer_norm_eps"])

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "mask"} -> {"hidden", "mask"}; no token attends to padding."""
        mask = given["mask"]
        attended, _ = self.attention(given["hidden"], mask[:, None, None, :])
        return {"hidden": self.norm(self.mlp(attended) + attended), "mask": mask}


class LastLayer(Layer):
    """The last transformer layer, of whose tokens only the first is read."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.whole = False
        """Whether all tokens are computed, see `compute_all_rows`."""

    def forward(self, given: Activations) -> Activations:
        """{"hidden" [B, n, d], "mask"} -> {"hidden" [B, 1, d]}; as `Layer` if `whole`."""
        if self.whole:
            return super().forward(given)
        attention, hidden = self.attention.self, given["hidden"]

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

        q, k, v = attention.query(hidden[:, :1]), attention.key(hidden), attention.value(hidden)
        read = F.scaled_dot_product_attention(
            heads(q), heads(k), heads(v), attn_mask=given["mask"][:, None, None, :]
        )
        first = self.attention.output(read.transpose(1, 2).flatten(2), hidden[:, :1])
        return {"hidden": self.norm(self.mlp(first) + first)}


class Classify(nn.Module):
    """The first token, through as much of pooler and classifier as the model has."""

    def __init__(self, width: int, pooled: bool, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width) if pooled else None
        self.out = nn.Linear(width, classes) if classes else None

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "mask"} -> {"output"}."""
        x = given["hidden"][:, 0]
        if self.dense is not None:
            x = self.dense(x).tanh()
        return {OUTPUT: x if self.out is None else self.out(x)}


INNER = {"intermediate.dense": "mlp.up", "output.dense": "mlp.down", "output.LayerNorm": "norm"}
"""A layer's tensors outside of attention -> those of `Layer`."""


def bert_segments(base: Checkpoint) -> tuple[Segment, ...]:
    """Embeddings, one segment a layer, pooler and classifier.

    Raises:
        InputError: an activation that `transformers` does not have.
    """
    fields = base.fields
    check_activation(fields["hidden_act"], f"{base.name}: {base.folder / 'config.json'}")
    stem = "embeddings."
    names = {key.removeprefix(stem): key for key in base.tensors if key.startswith(stem)}
    chain = [segment(base, Embed, (fields,), names)]
    for index in range(fields["num_hidden_layers"]):
        prefix = f"encoder.layer.{index}."
        inside = [key for key in base.tensors if key.startswith(prefix)]
        names = {own_name(key.removeprefix(prefix)): key for key in inside}
        last = index == fields["num_hidden_layers"] - 1
        layer = LastLayer if last else Layer
        chain.append(segment(base, layer, (fields,), names, "mlp", fields["hidden_size"]))
    kind = fields["model_type"]
    names = {
        f"{own}.{part}": f"{name}.{part}"
        for own, name in (("dense", DENSE[kind]), ("out", OUT[kind]))
        for part in ("weight", "bias")
        if f"{name}.{part}" in base.tensors
    }
    sizes = (fields["hidden_size"], "dense.weight" in names, len(fields["labels"]))
    chain.append(segment(base, Classify, sizes, names))
    check_untied(tuple(chain), base.name)
    return tuple(chain)


def own_name(name: str) -> str:
    """A tensor's name in `Layer`, of its name in `transformers`' layer.

    >>> own_name("output.dense.weight"), own_name("attention.output.dense.weight")
    ('mlp.down.weight', 'attention.output.dense.weight')
    """
    module, _, leaf = name.rpartition(".")
    return f"{INNER.get(module, module)}.{leaf}"


def check_activation(name: str, file: str) -> None:
    """Raise InputError where `transformers` has no activation of that name."""
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise InputError(f"{file}: hidden_act: {name!r}; allowed: {', '.join(sorted(ACT2FN))}")


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    ends = ("query.weight", "key.weight", "value.weight", "dense.weight")
    return name.endswith(ends) or name in {f"{out}.weight" for out in OUT.values()}


def input_of(name: str) -> str:
    """The weight under whose name statistics of a layer's input are kept: that of q for q, k, v."""
    for part in ("self.key.", "self.value."):
        name = name.replace(part, "self.query.")
    return name
