"""Entropy of predictions: the unsupervised loss of test-time adaptation."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy H = −Σ_c p_c·ln p_c of p = softmax(z): logits [..., C] -> [...], in nats.

    Source: Yang et al. 2024, arXiv:2310.02575, eq. 7. Deviation: FusionBench and its DAWE add 1e-8
    inside the logarithm, which changes the value by at most C·1e-8; here nothing is added.

    >>> import torch
    >>> round(entropy(torch.zeros(2, 4))[0].item(), 4)  # ln 4
    1.3863
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
