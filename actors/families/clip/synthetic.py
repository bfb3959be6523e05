"""Fine-tuning on a second, synthetic set of images beside the real ones.

Axes: B batch, C classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actors.families.images.loss import Classify, Objective
from actors.training.random_numbers import draws


@dataclass(frozen=True)
class Synthetic:
    """Synthetic images, and how a step mixes their loss with that of the real ones."""

    images: Tensor
    """uint8 [N, 3, H, W]."""
    labels: Tensor
    """int64 [N], in [0, C)."""
    share: float
    """Their share of the loss, in [0, 1]."""
    soft_targets: float
    """Weight of the teacher's probabilities in their loss."""

    def to(self, device: str) -> Synthetic:
        """The same on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def mixed(
        self,
        real: Callable[[], Tensor],
        objective: Objective,
        step: int,
        batch_size: int,
        student: Classify,
        standardise: Callable[[Tensor], Tensor],
        teacher: Classify | None,
    ) -> Tensor:
        """(1 − share)·L + share·L', with L the loss of a step's real images and L' that of as many
        synthetic ones, which are drawn anew in each step.

        Args:
            real: computes L; not called if the share is 1.
            objective: of the real images; L' differs by `soft_targets`.
            step: with the seed, determines which images are drawn.
            batch_size: synthetic images in a step; all, if there are fewer.
            student: the model that is trained.
            standardise: uint8 images -> pixels.
            teacher: required if `soft_targets` > 0.

        Source: He et al. 2023, arXiv:2210.07574, §3.2 (mix training, weights 1 to 1). Deviation:
        its synthetic batch is 16 times as large as the real one.
        """
        chosen = draws(objective.seed, step, "synthetic").permutation(len(self.labels))
        rows = torch.from_numpy(chosen[:batch_size]).to(self.labels.device)
        made = replace(objective, soft_targets=self.soft_targets).loss(
            step, self.images[rows], self.labels[rows], student, standardise, teacher
        )
        if self.share == 1:
            return made
        return (1 - self.share) * real() + self.share * made
