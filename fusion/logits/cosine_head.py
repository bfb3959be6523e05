"""Zero-shot classification: heads from prompt embeddings, and cosine-similarity logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def zero_shot_head(embeddings: Sequence[Tensor], logit_scale: Tensor | float) -> Tensor:
    """Zero-shot head from prompt embeddings: W_c = exp(s)·n(mean_m n(e_cm)), n normalises to L2.

    Args:
        embeddings: for each of C classes, the embeddings [m, D] of its prompts; m may differ.
        logit_scale: s, the checkpoint's parameter: the logarithm of the scale (4.6052 for 100).

    Returns:
        Head [C, D], logit scale included.

    Source: Radford et al. 2021, arXiv:2103.00020, §3.1.4 (prompt ensembling); order of operations
    as in its notebook.

    >>> head = zero_shot_head([torch.tensor([[2.0, 0.0], [0.0, 1.0]])], 0.0)
    >>> [round(weight, 4) for weight in head[0].tolist()]  # 1/√2: each prompt counts the same
    [0.7071, 0.7071]
    """
    means = torch.stack([normalized(prompts).mean(0) for prompts in embeddings])
    scale = torch.as_tensor(logit_scale, dtype=means.dtype, device=means.device).exp()
    return normalized(means) * scale


def logits(embeddings: Tensor, head: Tensor) -> Tensor:
    """Cosine-similarity logits n(z)Wᵀ [B, C] of embeddings [B, D] and a head [C, D].

    The embeddings need not be normalised.

    >>> logits(torch.tensor([[3.0, 4.0]]), torch.eye(2)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return normalized(embeddings) @ head.T


def normalized(embeddings: Tensor) -> Tensor:
    """Divide each embedding (the last axis) by its L2 norm, without an epsilon, as CLIP does."""
    unit: Tensor = embeddings / torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True)
    return unit
