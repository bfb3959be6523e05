"""Hyper-parameters that fine-tunings of models of images share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from actors.data.images.augment import Augmentation
from actors.families.images.loss import Objective


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Hyper-parameters with their ranges; `finetune` of a training file has these names."""

    epochs: Annotated[float, Interval(gt=0)] = 10.0
    """Passes over the images; a fraction is rounded to whole steps."""
    batch_size: Annotated[int, Interval(ge=1)] = 64
    """Images in a step."""
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-5
    """Highest learning rate of AdamW."""
    weight_decay: Annotated[float, Interval(ge=0)] = 0.1
    """Weight decay of AdamW, on matrices only (not on biases, norms and embeddings)."""
    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Fraction of the steps in which the learning rate rises."""
    label_smoothing: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Label smoothing: fraction of the target spread over all classes."""
    clip_norm: Annotated[float, Interval(gt=0)] = 1.0
    """Largest global gradient norm."""
    mixup: Annotated[float, Interval(ge=0)] = 0.0
    """`a` of Beta(a, a); 0: no mixup."""
    augmentation: Augmentation = "none"
    """Augmentation of the images of a step; see `augment.py`."""
    crop_scale: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """Smallest fraction of the area that a crop keeps. Default: WiSE-FT's."""
    operations: Annotated[int, Interval(ge=0)] = 2
    """Number of RandAugment operations for each image."""
    magnitude: Annotated[float, Interval(ge=0, le=30)] = 9.0
    """Magnitude of RandAugment."""
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, written to `<out>-ema`, warmed up as in
    `ema_decay`; 0: none."""
    swa: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Fraction of the steps, at the end, whose mean weights are written to `<out>-swa`; 0: none.
    The schedule stays the cosine: SWA's constant rate is not used."""
    frozen_batchnorm: bool = False
    """Freeze the statistics of batch norm; refused for a model without it, such as a ViT."""
    seed: Annotated[int, Interval(ge=0)] = 0
    """Seed of the order of images, of augmentation and mixup."""

    def objective(self) -> Objective:
        """The loss that a step minimises."""
        return Objective(
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            augmentation=self.augmentation,
            crop_scale=self.crop_scale,
            operations=self.operations,
            magnitude=self.magnitude,
            seed=self.seed,
        )


STEPWISE = (
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "clip_norm",
    "mixup",
    "augmentation",
    "crop_scale",
    "operations",
    "magnitude",
)
"""Those that are read at each step."""
