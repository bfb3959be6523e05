"""Entropy of predictions: the unsupervised loss of test-time adaptation."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy H = −Σ_c p_c·ln p_c of p = softmax(z): logits [..., C] -> [...], in nats.

    Source: Yang et al. 2024, arXiv:2310.02575, eq. 7. Deviation: FusionBench and its DAWE add 1e-8
    inside the logarithm, which changes the value by at most C·1e-8; here nothing is added. See
    `entropy_of_means`, which adds it.

    >>> import torch
    >>> round(entropy(torch.zeros(2, 4))[0].item(), 4)  # ln 4
    1.3863
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of_means(logits: Tensor, groups: Tensor) -> Tensor:
    """Entropy of the mean logits of each row's group: logits [B, C], int64 [B] -> [B], in nats.

    Rows of a group have one value: −Σ_c p_c·ln(p_c + 1e-8) of p = softmax(mean of their logits).

    Source: FusionBench's AdaMerging of Flan-T5, whose group is a batch of one task.

    >>> import torch
    >>> z = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])  # sure of different classes
    >>> [round(h, 3) for h in entropy_of_means(z, torch.tensor([0, 0, 1])).tolist()]
    [0.693, 0.693, 0.001]
    """
    same = (groups[:, None] == groups).to(logits.dtype)
    p = (same @ logits / same.sum(1, keepdim=True)).softmax(-1)
    return -(p * (p + 1e-8).log()).sum(-1)
