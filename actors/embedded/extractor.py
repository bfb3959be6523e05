"""Train the embedded pool's extractor: a small ResNet that separates the classes of all tasks.

It is trained on the base's pretraining images, so it knows all tasks, as the ResNets of the hub
know photographs, and has seen no image on which a sweep selects or reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.data.task_rows import Captioned
from actors.families.clip.fine_tune import (
    cpu_threads,
    optimise,
    quiet,
    shuffled_batches,
    staged,
    standardised,
)
from actors.families.clip.pretrain import joint_labels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as in the files of the hub's ResNets."""

SIZES = (16, 32, 64, 128)
"""Channels a stage; the last is the number of features."""


def train_extractor(
    tasks: Mapping[str, Captioned],
    out: Path,
    *,
    image: int = 32,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip_norm: float = 5.0,
    seed: int = 0,
    threads: int = 1,
) -> Path:
    """Train a ResNet with one joint softmax over all (task, class) pairs; save it as the hub does.

    `ResNetModel`, `ResNetForImageClassification` and `ConvNextImageProcessorPil` load the result
    as they load `microsoft/resnet-18`. Same arguments, same bits on the same kind of CPU.

    Args:
        tasks: name -> images uint8 [N, 3, image, image], labels, names of the classes.
        out: the folder to make; absent until it is whole.
        image: side of the images.
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: AdamW's, at its highest.
        weight_decay: AdamW's, on kernels and matrices only.
        warmup: fraction of the steps in which the learning rate rises.
        clip_norm: largest global gradient norm.
        seed: of the weights and of the order of images.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.

    Returns:
        `out`.
    """
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import (
        ConvNextImageProcessorPil,
    )

    names = [f"{task}: {name}" for task in tasks for name in tasks[task].classnames]
    images = torch.cat([task.images for task in tasks.values()])
    targets = joint_labels(tasks.values())
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    config = ResNetConfig(
        embedding_size=SIZES[0],
        hidden_sizes=list(SIZES),
        depths=[1] * len(SIZES),
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    # Initialisation draws from torch's global generator: save its state, and restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config).train()

    def loss(rows: Tensor) -> Tensor:
        scores = model(pixel_values=standardised(images[rows], mean, std)).logits
        return F.cross_entropy(scores, targets[rows])

    with cpu_threads(threads):
        optimise(
            loss,
            model,
            shuffled_batches(len(images), batch_size, steps, seed),
            steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            clip_norm=clip_norm,
            advance=lambda step, total, value: None,
        )
    # crop_pct 1: images already have this size, and are not enlarged before the crop.
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": image},
        crop_pct=1.0,
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    with staged(out) as folder, quiet():
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
    return out
