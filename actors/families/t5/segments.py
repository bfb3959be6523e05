"""T5 as a chain of segments: what shards are cut from.

Embed -> encoder blocks -> Turn -> decoder blocks -> Score. The decoder reads a tree of tokens (see
`answers.py`), of which a plain sequence is the special case of one branch.

Activations, axes B rows, n source tokens, m nodes of the tree, h heads, M models (1, or B):

| name | shape | from … to |
|---|---|---|
| `hidden` | [B, n, d], after Turn [B, m, d] | Embed … Score |
| `mask` | bool [B, n], after Turn [B, m]: real tokens, real nodes | Embed … Score |
| `memory`, `source_mask` | [B, n, d], bool [B, n]: the encoder's output | Turn … decoder blocks |
| `start`, `node_mask` | [B, m, d], bool [B, m]: the nodes' embeddings | Embed … Turn |
| `encoder_table`, `decoder_table` | [M, buckets, h]: relative position biases | Embed … blocks |
| `tree` | bool [B, m, m]: ancestors of each node, and itself | collated … decoder blocks |
| `depth` | int64 [B, m] | the same |
| `answers`, `prefixes` | int64 [B, C, L]: tokens, −1 where none, the node before each | … Score |
| `averaged` | int64 [B]: see `answers.collated`; of few batches | … Score |
| `output` | [B, 2 + C] | Score |

A table has one row where all rows share a model, since biases are then made once for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import AVERAGED
from actors.data.text.answers import LAST
from actors.families.activations import activation
from actors.families.protocol import OUTPUT, Activations, Segment, segment
from actors.families.t5.architecture import (
    CROSS,
    FEED_FORWARD,
    GATED,
    LM_HEAD,
    SELF,
    SHARED,
    TABLES,
    TYPICAL_NODES,
    TYPICAL_TOKENS,
    block_work,
    inner_names,
    output_work,
    sides,
)
from actors.families.t5.score import scores
from fusion.logits.entropy import entropy_of_means
from fusion.task_vectors.task_vectors import accumulator


class Norm(nn.RMSNorm):
    """Root mean square normalisation in the order of operations of T5's own."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, …, d] -> [B, …, d]; squares are averaged in float32 or wider."""
        variance = x.to(accumulator(x.dtype)).pow(2).mean(-1, keepdim=True)
        scaled = x * torch.rsqrt(variance + (self.eps or 0.0))
        return self.weight * scaled.to(x.dtype)


class FeedForward(nn.Module):
    """wo(gelu(wi_0 x) ⊙ wi_1 x), or wo(relu(wi x)); no dropout, no biases."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = fields["d_model"], fields["d_ff"]
        self.names = inner_names(fields)
        for name in self.names:
            self.add_module(name, nn.Linear(width, inner, bias=False))
        self.wo = nn.Linear(inner, width, bias=False)
        gated = fields["feed_forward_proj"] == GATED
        self.act = activation("gelu_new" if gated else "relu")

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, …, d] -> [B, …, d]."""
        activated, *gate = [self.get_submodule(name)(hidden) for name in self.names]
        activated = self.act(activated)
        out: Tensor = self.wo(activated * gate[0] if gate else activated)
        return out


class Attention(nn.Module):
    """Attention of heads of `d_kv` each, whose scores are not divided by √d_kv."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width, self.size = fields["d_model"], fields["d_kv"]
        wide = self.size * fields["num_heads"]
        self.q, self.k, self.v = (nn.Linear(width, wide, bias=False) for _ in range(3))
        self.o = nn.Linear(wide, width, bias=False)

    def forward(self, hidden: Tensor, bias: Tensor, memory: Tensor | None = None) -> Tensor:
        """Queries of `hidden` [B, q, d], keys and values of `memory` [B, k, d] -> [B, q, d].

        Args:
            hidden: what asks.
            bias: added to the scores, [B, h | 1, q, k].
            memory: what is asked; None: `hidden`.
        """
        asked = hidden if memory is None else memory
        q, k, v = (self.heads(x) for x in (self.q(hidden), self.k(asked), self.v(asked)))
        found = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(found.transpose(1, 2).reshape(*hidden.shape[:-1], -1))
        return out

    def heads(self, x: Tensor) -> Tensor:
        """[B, n, h·d_kv] -> [B, h, n, d_kv]."""
        return x.view(*x.shape[:-1], -1, self.size).transpose(1, 2)


class Layer(nn.Module):
    """A sublayer of a residual stream, with its norm before it; names are `transformers`' own."""

    def __init__(self, kind: str, sublayer: nn.Module, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        self.add_module(kind, sublayer)
        self.layer_norm = Norm(fields["d_model"], eps=fields["layer_norm_epsilon"])

    def forward(self, hidden: Tensor, *given: Tensor) -> Tensor:
        """[B, n, d] -> [B, n, d]; `given`: what the sublayer reads beside."""
        out: Tensor = hidden + self.get_submodule(self.kind)(self.layer_norm(hidden), *given)
        return out


class Embed(nn.Module):
    """Embeddings of source tokens and of the tree's nodes, and both tables of position biases."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.shared = nn.Embedding(fields["vocab_size"], fields["d_model"])
        buckets, heads = fields["relative_attention_num_buckets"], fields["num_heads"]
        self.encoder_table = nn.Embedding(buckets, heads)
        self.decoder_table = nn.Embedding(buckets, heads)
        self.buckets = buckets
        self.dtype = torch.float32
        """Of everything computed; set by who holds the weights."""

    def forward(self, given: Activations) -> Activations:
        """{"ids", "mask", "nodes", "node_mask", …} -> {"hidden", …}."""
        every = torch.arange(self.buckets, device=given["ids"].device)[None]
        embedded = {
            "hidden": self.shared(given["ids"]),
            "start": self.shared(given["nodes"]),
            "encoder_table": live(self.encoder_table(every)),
            "decoder_table": live(self.decoder_table(every)),
        }
        handed = {k: v for k, v in given.items() if k not in ("ids", "nodes")}
        return {k: v.to(self.dtype) for k, v in embedded.items()} | handed


class EncoderBlock(nn.Module):
    """Self-attention over real source tokens, feed-forward."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        sublayers = {SELF: Attention(fields), FEED_FORWARD: FeedForward(fields)}
        self.layer = nn.ModuleList(Layer(kind, each, fields) for kind, each in sublayers.items())
        self.largest = fields["relative_attention_max_distance"]

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "mask", "encoder_table", …} -> the same with new `hidden`."""
        hidden, table = given["hidden"], given["encoder_table"]
        at = torch.arange(hidden.shape[1], device=hidden.device)
        buckets = bidirectional(at[None] - at[:, None], table.shape[1], self.largest)
        bias = masked(biases(table, buckets[None]), given["mask"][:, None, None])
        attend, feed = self.layer
        return {**given, "hidden": feed(attend(hidden, bias))}


class Turn(nn.Module):
    """The encoder's final norm; what follows works on the tree's nodes."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.final_layer_norm = Norm(fields["d_model"], eps=fields["layer_norm_epsilon"])

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "mask", "start", "node_mask", …} -> {"hidden", "mask", "memory", …}."""
        turned = {
            "hidden": given["start"],
            "mask": given["node_mask"],
            "memory": self.final_layer_norm(given["hidden"]),
            "source_mask": given["mask"],
        }
        left = ("hidden", "mask", "start", "node_mask", "encoder_table")
        return turned | {name: each for name, each in given.items() if name not in left}


class DecoderBlock(nn.Module):
    """Self-attention of each node over its ancestors, attention over the memory, feed-forward."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        sublayers = {
            SELF: Attention(fields),
            CROSS: Attention(fields),
            FEED_FORWARD: FeedForward(fields),
        }
        self.layer = nn.ModuleList(Layer(kind, each, fields) for kind, each in sublayers.items())
        self.largest = fields["relative_attention_max_distance"]

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "memory", "source_mask", "decoder_table", "tree", "depth", …} -> the same with
        new `hidden`."""
        hidden, memory, table = given["hidden"], given["memory"], given["decoder_table"]
        depth = given["depth"]
        back = (depth[:, :, None] - depth[:, None, :]).clamp(min=0)
        buckets = logarithmic(back, table.shape[1], self.largest)
        bias = masked(biases(table, buckets), given["tree"][:, None])
        attend, cross, feed = self.layer
        beside = masked(memory.new_zeros(()), given["source_mask"][:, None, None])
        beside = beside.expand(-1, -1, hidden.shape[1], -1)
        return {**given, "hidden": feed(cross(attend(hidden, bias), beside, memory))}


class Score(nn.Module):
    """The decoder's final norm, the output projection, and what is read off the answers' tree."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        width = fields["d_model"]
        self.final_layer_norm = Norm(width, eps=fields["layer_norm_epsilon"])
        self.lm_head = nn.Linear(width, fields["vocab_size"], bias=False)
        self.factor = width**-0.5 if fields["scaled"] else None
        self.vocabulary = fields["vocab_size"]

    def forward(self, given: Activations) -> Activations:
        """{"hidden", "answers", "prefixes", …} -> {"output"}: see `scores`; or, with `last`, the
        likeliest next token of each row [B, 1].

        Of rows that are `averaged` column 0 is the entropy of the mean of their logits at the last
        node.
        """
        hidden = self.final_layer_norm(given["hidden"])
        if self.factor is not None:
            hidden = hidden * self.factor
        if LAST in given:
            at = given[LAST][:, None, None].expand(-1, 1, hidden.shape[-1])
            tokens = self.lm_head(hidden.gather(1, at))[:, 0].argmax(-1, keepdim=True)
            return {OUTPUT: tokens.to(torch.float32)}
        averaged = given.get(AVERAGED)
        tree = hidden if averaged is None else hidden[:, :-1]
        found = scores(tree, self.lm_head, self.vocabulary, given["answers"], given["prefixes"])
        if averaged is not None:
            z = self.lm_head(hidden[:, -1:])[:, 0].to(found.dtype)
            first = torch.where(averaged < 0, found[:, 0], entropy_of_means(z, averaged))
            found = torch.cat([first[:, None], found[:, 1:]], dim=1)
        return {OUTPUT: found}


def live(table: Tensor) -> Tensor:
    """A table that requires gradients wherever they are on, as it does after a cut.

    Attention under a mask that requires gradients has a kernel of its own: results of all cuts are
    then equal to the bit.
    """
    return table.requires_grad_() if torch.is_grad_enabled() and table.is_leaf else table


def bidirectional(ahead: Tensor, buckets: int, largest: int) -> Tensor:
    """Bucket of a distance: the first half for keys at or before the query, the second for later.

    >>> bidirectional(torch.tensor([-1, 0, 1, 500]), 32, 128).tolist()
    [1, 0, 17, 31]
    """
    half = buckets // 2
    return (ahead > 0).long() * half + logarithmic(ahead.abs(), half, largest)


def logarithmic(distance: Tensor, buckets: int, largest: int) -> Tensor:
    """Bucket of a distance ≥ 0: half of them for each of the first, the others ever wider.

    >>> logarithmic(torch.tensor([0, 3, 15, 16, 127, 1000]), 32, 128).tolist()
    [0, 3, 15, 16, 31, 31]
    """
    exact = buckets // 2
    share = torch.log(distance.float() / exact) / math.log(largest / exact)
    wide = exact + (share * (buckets - exact)).long()
    return torch.where(distance < exact, distance, wide.clamp(max=buckets - 1))


def biases(table: Tensor, buckets: Tensor) -> Tensor:
    """Entries of tables [M, buckets, h] at int64 [1 | B, q, k]: [max(M, B), h, q, k]."""
    models, size = table.shape[:2]
    offsets = size * torch.arange(models, device=table.device)
    found = embedding(buckets + offsets[:, None, None], table.flatten(0, 1))
    return found.permute(0, 3, 1, 2)


def masked(bias: Tensor, seen: Tensor) -> Tensor:
    """A bias whose entries that are not seen are the lowest number, and take no attention."""
    return torch.where(seen, bias, torch.finfo(bias.dtype).min).contiguous()


def t5_segments(base: Checkpoint) -> tuple[Segment, ...]:
    """Embeddings, the encoder's blocks, its norm, the decoder's blocks, output."""
    fields = dict(base.fields)
    names = {
        "shared.weight": SHARED,
        "encoder_table.weight": TABLES["encoder"],
        "decoder_table.weight": TABLES["decoder"],
    }
    looked_up = (TYPICAL_TOKENS + TYPICAL_NODES) * fields["d_model"]
    chain = [segment(base, Embed, (fields,), names, work=0, lookups=looked_up)]
    for side, depth in sides(fields).items():
        if side == "decoder":
            norm = {"final_layer_norm.weight": "encoder.final_layer_norm.weight"}
            chain.append(segment(base, Turn, (fields,), norm, work=0))
        chain += [block(base, side, index) for index in range(depth)]
    ends = {
        "final_layer_norm.weight": "decoder.final_layer_norm.weight",
        "lm_head.weight": SHARED if fields["tied"] else LM_HEAD,
    }
    chain.append(segment(base, Score, (fields,), ends, work=output_work(fields)))
    return tuple(chain)


def block(base: Checkpoint, side: str, index: int) -> Segment:
    """One block of a side."""
    prefix = f"{side}.block.{index}."
    names = {
        name.removeprefix(prefix): name
        for name in base.tensors
        if name.startswith(prefix) and name not in TABLES.values()
    }
    kind, last = (EncoderBlock, 1) if side == "encoder" else (DecoderBlock, 2)
    memory = (f"{CROSS}.k.weight", f"{CROSS}.v.weight")
    cross = {own: "source_mask" for own in names if own.endswith(memory)}
    return segment(
        base,
        kind,
        (dict(base.fields),),
        names,
        f"layer.{last}.{FEED_FORWARD}",
        base.fields["d_model"],
        work=block_work(base.fields, side),
        masks=cross,
    )
