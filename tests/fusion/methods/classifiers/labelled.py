"""Labelled features around the centres of their classes."""

import torch
from torch import Tensor

from fusion.logits.dataset import Labelled


def labelled(centres: Tensor, n: int, split: str, seed: int, noise: float) -> Labelled:
    """`n` rows of each class in turn: its centre, a row of `centres` [C, D], and normal noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(centres)
    features = centres[labels] + noise * torch.randn(n, centres.shape[1], generator=draw)
    return Labelled(features, labels, split)
