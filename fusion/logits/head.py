"""Classification heads (model output -> logits), and the loss of a batch of several tasks.

Axes: B rows, C classes, D width of the output, V size of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion.logits import cosine_head
from fusion.logits.entropy import entropy

Target: TypeAlias = torch.dtype | torch.device
"""Argument of `Tensor.to`."""

Objective: TypeAlias = Literal["vocabulary", "answers", "fusionbench"]
"""Which entropy of a text-to-text model is minimised; see `AnswerHead`."""


class Head(Protocol):
    """Classification head of one task, differentiable in the model's output."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    def logits(self, output: Tensor) -> Tensor:
        """Logits [B, C] of the outputs of B rows, on the device and in the dtype of the head."""
        ...

    def entropy(self, output: Tensor) -> Tensor:
        """Entropy [B] of the predictions in nats, which learning without labels minimises."""
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

    def entropy(self, output: Tensor) -> Tensor:
        """Of the classes' probabilities; see `Head.entropy`."""
        return entropy(self.logits(output))

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

    def entropy(self, output: Tensor) -> Tensor:
        """Of the classes' probabilities; see `Head.entropy`."""
        return entropy(self.logits(output))

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

    def entropy(self, output: Tensor) -> Tensor:
        """Of the classes' probabilities; see `Head.entropy`."""
        return entropy(self.logits(output))

    def to(self, target: Target) -> VerbaliserHead:
        """The tokens on another device; token ids keep their dtype."""
        return self if isinstance(target, torch.dtype) else VerbaliserHead(self.tokens.to(target))


@dataclass(frozen=True, eq=False)
class AnswerHead:
    """Scores of whole answers, which a text-to-text model has put into its output.

    Outputs are [B, 2 + C]: the entropy of the first token over the whole vocabulary (see
    `averaged`), the class that greedy decoding writes (−1: none), and Σ_j log p(token j) of each
    class's answer.
    """

    answers: Tensor
    """int [C, L], tokens of each class's answer and its end, −1 after it."""
    blanks: frozenset[int] = frozenset()
    """Tokens of whitespace and punctuation alone, which do not count at the ends of a text."""
    objective: Objective = "vocabulary"
    """`vocabulary`: the entropy of the first token over the whole vocabulary, that of DAWE's
    released code for Flan-T5. `answers`: that of the answers' probabilities, renormalised, which
    is ours. `fusionbench`: that of FusionBench's AdaMerging and WE-MoE of Flan-T5; see
    `averaged`."""

    @property
    def classes(self) -> int:
        """C; outputs may have more columns, of other tasks' classes."""
        return len(self.answers)

    @property
    def averaged(self) -> bool:
        """Whether learning reads one entropy a batch: that of the mean over its rows of the logits
        after the token that ends an answer, in place of the decoder's start token.

        The model then puts it into the first column of each row of the batch.
        """
        return self.objective == "fusionbench"

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        first = self.answers[0]
        return int(first[first >= 0][-1])

    def logits(self, output: Tensor) -> Tensor:
        """Log-probabilities [B, C] of the answers, not renormalised.

        >>> head = AnswerHead(torch.tensor([[5, 1], [6, 1]]))
        >>> head.logits(torch.tensor([[0.5, 1.0, -3.0, -1.0]])).tolist()
        [[-3.0, -1.0]]
        """
        return output[:, 2 : 2 + self.classes]

    def entropy(self, output: Tensor) -> Tensor:
        """See `objective`."""
        return entropy(self.logits(output)) if self.objective == "answers" else output[:, 0]

    def written(self, output: Tensor) -> Tensor:
        """int64 [B]: the class whose answer greedy decoding writes; −1 where it is none."""
        return output[:, 1].to(torch.int64)

    def to(self, target: Target) -> AnswerHead:
        """The same head: no weights are computed with."""
        return self


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
            labels: int64 [B]: cross-entropy of β·logits; None: mean `Head.entropy`.
            beta: β, the inverse temperature of the cross-entropy.
        """
        losses, at = [], 0
        for task, count in parts:
            here = slice(at, at + count)
            head = self.heads[task].to(output.dtype)
            if labels is None:
                losses.append(head.entropy(output[here]).mean())
            else:
                z = head.logits(output[here])
                losses.append(cross_entropy(beta * z, labels[here].to(z.device)))
            at += count
        return torch.stack(losses)
