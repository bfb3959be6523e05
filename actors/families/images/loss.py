"""Loss of a fine-tuning step on images: hard labels, mixup, and a teacher's soft targets.

Axes: B batch, C classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.data.images.augment import Augmentation, augmented, mixed
from actors.training.random_numbers import draws

Classify: TypeAlias = Callable[[Tensor], Tensor]
"""Standardised pixels float32 [B, 3, H, W] -> logits [B, C]."""


@dataclass(frozen=True)
class Objective:
    """Hyper-parameters of the loss; see `ImageOptions`."""

    label_smoothing: float
    mixup: float
    augmentation: Augmentation
    crop_scale: float
    operations: int
    magnitude: float
    seed: int
    soft_targets: float = 0.0
    """Weight of the teacher's term."""
    soft_temperature: float = 1.0

    def loss(
        self,
        step: int,
        images: Tensor,
        labels: Tensor,
        student: Classify,
        standardise: Callable[[Tensor], Tensor],
        teacher: Classify | None = None,
    ) -> Tensor:
        """(1 − s)·CE(y, z) + s·CE(softmax(z_T/T), z), the mean over the batch.

        With mixup the first term is λ·CE(y, z) + (1 − λ)·CE(y[order], z). Teacher and student read
        the same pixels, augmented and mixed. The student's logits are not divided by T, and the
        term is not scaled by T².

        Args:
            step: with the seed, determines the random numbers.
            images: uint8 [B, 3, H, W].
            labels: int64 [B].
            student: the model that is trained.
            standardise: uint8 images -> pixels.
            teacher: required if `soft_targets` > 0.

        Source of the soft term: He et al. 2023, arXiv:2210.07574, and its code.
        """
        images = augmented(
            images,
            self.augmentation,
            draws(self.seed, step, "augmentation"),
            crop_scale=self.crop_scale,
            operations=self.operations,
            magnitude=self.magnitude,
        )
        pixels, order, share = standardise(images), None, 1.0
        if self.mixup:
            pixels, order, share = mixed(pixels, self.mixup, draws(self.seed, step, "mixup"))
        z = student(pixels)
        value = F.cross_entropy(z, labels, label_smoothing=self.label_smoothing)
        if order is not None:
            other = F.cross_entropy(z, labels[order], label_smoothing=self.label_smoothing)
            value = share * value + (1 - share) * other
        if self.soft_targets:
            assert teacher is not None
            with torch.no_grad():
                teacher_logits = teacher(pixels) / self.soft_temperature
            soft = F.cross_entropy(z, teacher_logits.softmax(dim=1))
            value = (1 - self.soft_targets) * value + self.soft_targets * soft
        return value
