"""What all fine-tunings of a task start from: the base, with the task's classes.

Models whose weights are averaged need one start, the classifier included (Wortsman et al. 2022,
arXiv:2203.05482), so it is drawn once a task.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.class_names import normalised
from actors.data.images.preprocessor_config import FILES
from actors.data.task import Task
from actors.families.vision.architecture import OUT
from actors.training.optimizer_loop import quiet

SPREAD = 0.02
"""Standard deviation of a fresh classifier's weights: ViT's `initializer_range`."""


def write_start(base: Checkpoint, task: Task, seed: int, folder: Path) -> None:
    """Write the base in float32 with a classifier of the task's classes, and its image processor.

    A base that has these classes in this order, as in the paper, keeps its classifier. Any other
    gets a fresh one: weights from N(0, 0.02²), biases 0.

    Args:
        base: a classifier, or the body of one.
        task: whose class names become `id2label`.
        seed: of the draw.
        folder: to write to.
    """
    import transformers

    own = [normalised(name) for name in base.fields["labels"]]
    kept = own == [normalised(name) for name in task.classnames]
    names = dict(enumerate(task.classnames))
    with torch.random.fork_rng(devices=[]), quiet():  # the library draws what it lacks
        model = transformers.AutoModelForImageClassification.from_pretrained(
            base.folder,
            id2label=names,
            label2id={name: at for at, name in names.items()},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
        if not kept:
            fill(model.get_submodule(OUT[base.fields["model_type"]]), seed)
    save(model, base.folder, folder)


def fill(layer: Any, seed: int) -> None:
    """Draw a classifier anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(SPREAD * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.zero_()


def save(model: Any, source: Path, folder: Path) -> None:
    """Write a classifier as `transformers` does, with the image processor of another folder."""
    with quiet():
        model.save_pretrained(folder)
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
