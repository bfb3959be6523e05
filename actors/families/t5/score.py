"""Scores of a task's answers, read off the decoder's states at the nodes of their tree.

Axes: B rows, m nodes, V vocabulary, C classes, L tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fusion.logits.entropy import entropy
from fusion.task_vectors.task_vectors import accumulator

LOGITS = 1 << 26
"""Logits made at a time: 256 MiB in float32."""

LOWEST = torch.finfo(torch.float32).min
"""Score of a class that the row's task does not have."""


def scores(
    hidden: Tensor,
    project: Callable[[Tensor], Tensor],
    vocabulary: int,
    answers: Tensor,
    prefixes: Tensor,
) -> Tensor:
    """Per row: entropy of the first token, class of the greedy answer, scores of all answers.

    Args:
        hidden: [B, m, d], the decoder's states; node 0 is the start token.
        project: [B, k, d] -> logits [B, k, V].
        vocabulary: V.
        answers: int64 [B, C, L], the tokens of each class's answer with its end token, −1 after it
            and where there is no such class.
        prefixes: int64 [B, C, L], the node before each token of an answer.

    Returns:
        [B, 2 + C] in float32 (float64 where `hidden` is):

        * column 0: entropy in nats of p(token | start) over the whole vocabulary;
        * column 1: the class whose answer follows the arg max over the whole vocabulary at every
          token, so greedy decoding would write it and end; −1 where none does. No gradient;
        * column 2 + c: Σ_j log p(token j of answer c | the tokens before); `LOWEST` where there is
          no class c.
    """
    real = answers >= 0
    wide = accumulator(hidden.dtype)
    logs = torch.zeros(answers.shape, dtype=wide, device=hidden.device)
    greedy = torch.zeros_like(real)
    first = None
    step = max(1, LOGITS // (len(hidden) * vocabulary))
    for start in range(0, hidden.shape[1], step):
        z = project(hidden[:, start : start + step]).to(wide)
        if first is None:
            first = entropy(z[:, 0])
        here = real & (prefixes >= start) & (prefixes < start + z.shape[1])
        at = (prefixes - start).clamp(0, z.shape[1] - 1)
        tokens = answers.clamp(min=0)
        found = taken(z.flatten(1), at * vocabulary + tokens) - taken(z.logsumexp(-1), at)
        logs = logs + torch.where(here, found, 0.0)
        greedy = greedy | (here & (taken(z.detach().argmax(-1), at) == tokens))
    assert first is not None
    there = real.any(2)
    ranks = torch.where(there, logs.sum(2), LOWEST)
    followed = (greedy | ~real).all(2) & there
    written = torch.where(followed.any(1), followed.int().argmax(1), -1)
    return torch.cat([first[:, None], written[:, None].to(wide), ranks], dim=1)


def taken(values: Tensor, at: Tensor) -> Tensor:
    """values [B, …] at int64 [B, C, L]: [B, C, L]."""
    return values.gather(1, at.flatten(1)).view(at.shape)
