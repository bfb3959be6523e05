"""Classification heads (model output -> logits), and the loss of a batch of several tasks.

Axes: B rows, C classes, D width of the output, V size of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion.logits import cosine_head
from fusion.logits.entropy import entropy

Target: TypeAlias = torch.dtype | torch.device
"""Argument of `Tensor.to`."""


class Head(Protocol):
    """Classification head of one task, differentiable in the model's output."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    def logits(self, output: Tensor) -> Tensor:
        """Logits [B, C] of the outputs of B rows, on the device and in the dtype of the head."""
        ...

    def to(self, target: Target) -> Head:
        """The same head on another device, or with weights of another dtype."""
        ...


@dataclass(frozen=True, eq=False)
class CosineHead:
    """Cosine head: cosine similarity to class vectors times a scale, n(z)·Wᵀ, as in CLIP."""

    weight: Tensor
    """[C, D], with the logit scale included."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.weight)

    def logits(self, output: Tensor) -> Tensor:
        """Logits [B, C] of embeddings [B, D], which need not be normalised.

        >>> CosineHead(torch.eye(2)).logits(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
        """
        return cosine_head.logits(output, self.weight)

    def to(self, target: Target) -> CosineHead:
        """See `Head.to`."""
        return CosineHead(self.weight.to(target))


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Linear head z·Wᵀ + b, or W·tanh(z·Pᵀ + p) + b with a dense layer before it."""

    weight: Tensor
    """[C, D]."""
    bias: Tensor | None = None
    """[C]; None: no bias."""
    before: LinearHead | None = None
    """Dense layer with P [D, D'] and p [D]; None (default): no dense layer."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.weight)

    def logits(self, output: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D].

        >>> head = LinearHead(torch.eye(2), torch.tensor([0.0, 1.0]))
        >>> head.logits(torch.tensor([[3.0, 4.0]])).tolist()
        [[3.0, 5.0]]
        """
        if self.before is not None:
            output = self.before.logits(output).tanh()
        return torch.nn.functional.linear(output, self.weight, self.bias)

    def to(self, target: Target) -> LinearHead:
        """See `Head.to`."""
        bias = None if self.bias is None else self.bias.to(target)
        before = None if self.before is None else self.before.to(target)
        return LinearHead(self.weight.to(target), bias, before)


@dataclass(frozen=True, eq=False)
class VerbaliserHead:
    """Verbaliser: one token for each class; logits are the vocabulary logits at these tokens."""

    tokens: Tensor
    """int64 [C], token ids."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.tokens)

    def logits(self, output: Tensor) -> Tensor:
        """Logits [B, C] of vocabulary logits [B, V].

        >>> VerbaliserHead(torch.tensor([2, 0])).logits(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[3.0, 1.0]]
        """
        return output[:, self.tokens]

    def to(self, target: Target) -> VerbaliserHead:
        """The tokens on another device; token ids keep their dtype."""
        return self if isinstance(target, torch.dtype) else VerbaliserHead(self.tokens.to(target))


def as_head(head: Tensor | Head) -> Head:
    """Return a head; a tensor [C, D], the form of head files, becomes a cosine head."""
    return CosineHead(head) if isinstance(head, Tensor) else head


@dataclass(frozen=True, eq=False)
class TaskLoss:
    """Mean loss of each task in a batch whose rows belong to several tasks."""

    heads: Mapping[str, Head]
    """Task -> its head."""

    def __call__(
        self,
        output: Tensor,
        parts: Sequence[tuple[str, int]],
        labels: Tensor | None = None,
        beta: Tensor | float = 1.0,
    ) -> Tensor:
        """Losses [tasks] in nats, in the order of `parts`.

        Args:
            output: the model's outputs [B, …]; heads are converted to their dtype.
            parts: (task, number of rows), in the order of the rows.
            labels: int64 [B]: cross-entropy of β·logits; None: mean entropy of the predictions.
            beta: β, the inverse temperature of the cross-entropy.
        """
        losses, at = [], 0
        for task, count in parts:
            here = slice(at, at + count)
            z = self.heads[task].to(output.dtype).logits(output[here])
            if labels is None:
                losses.append(entropy(z).mean())
            else:
                losses.append(cross_entropy(beta * z, labels[here].to(z.device)))
            at += count
        return torch.stack(losses)
