"""Fine-tuning of a ViT or ResNet classifier on one task: all weights, cross-entropy.

Axes: N images, B batch, C classes, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.data.images.preprocess import normalised
from actors.data.images.preprocessor_config import read_classifier
from actors.data.task_rows import TaskData
from actors.families.images.options import STEPWISE, ImageOptions
from actors.families.images.rows import images_of, outputs_of
from actors.families.protocol import Judge, Training, unjudged
from actors.families.vision.fresh_classifier import save, write_start
from actors.training.checkpoint import STOPS
from actors.training.fine_tuning import run
from actors.training.optimizer_loop import Advance, cpu_threads, quiet, silent
from actors.training.precision import exact_products
from fusion.errors import InputError
from fusion.methods.soups.weight_averaging import batchnorms, freeze_batchnorm


@dataclass(frozen=True, kw_only=True)
class FineTuning(ImageOptions):
    """Hyper-parameters of `fine_tune`; `finetune` of a training file has these names and ranges.

    Defaults are those of CLIP's towers.
    """


def fine_tune(
    start: Path,
    task: TaskData,
    out: Path,
    options: FineTuning,
    *,
    threads: int = 1,
    device: str = "cpu",
    head: Path | None = None,
    advance: Advance = silent,
    state: Path | None = None,
    stops: Sequence[float] = STOPS,
    judge: Judge = unjudged,
) -> Path:
    """Fine-tune a classifier on a task's fit rows, in float32: body and classifier.

    AdamW, a cosine schedule after a linear warm-up. The model is in evaluation mode, so there is no
    dropout; batch norm normalises by the batch and updates its running statistics (momentum 0.1, as
    `transformers` makes the layers), except with `frozen_batchnorm`, which keeps and uses the
    start's. Scale and shift are trained in both cases. Averages along the run (`ema`, `swa`) get
    running statistics measured on the fit rows.

    Args:
        start: folder of a classifier of the task's classes; see `write_start`.
        task: rows, prepared for the model.
        out: the expert's folder: `…ForImageClassification`, with the image processor beside it.
        options: hyper-parameters.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.
        device: device to train on.
        head: not used: the classifier is trained.
        advance: called after each step.
        state: see `actors.training.fine_tuning.run`.
        stops: fractions of the steps.
        judge: see `Training.fine_tune`.

    Returns:
        `out`.

    Raises:
        InputError: `frozen_batchnorm` for a model without batch norm.
    """
    import transformers

    exact_products()
    images, labels = (part.to(device) for part in images_of(task.rows["fit"]))
    constants = read_classifier(start).constants(torch.device(device), torch.float32)
    objective = options.objective()
    with cpu_threads(threads), quiet():
        model = transformers.AutoModelForImageClassification.from_pretrained(
            start, dtype=torch.float32
        ).to(device)
        check_batchnorm(model, options, start)

        def standardise(rows: Tensor) -> Tensor:
            return normalised(rows, *constants)

        def logits(pixels: Tensor) -> Tensor:
            found: Tensor = model(pixel_values=pixels).logits
            return found

        def loss(step: int, at: Tensor) -> Tensor:
            set_mode(model, training=not options.frozen_batchnorm)
            return objective.loss(step, images[at], labels[at], logits, standardise)

        def seen(rows: Tensor) -> Tensor:
            set_mode(model, training=False)
            with torch.no_grad():
                return logits(standardise(rows.to(device)))

        def look(share: float, seen: Callable[[Any], Tensor]) -> None:
            judge(share, lambda chosen: outputs_of(chosen, seen))

        def passes() -> Iterator[dict[str, Tensor]]:
            parts = torch.split(images, options.batch_size)
            return ({"pixel_values": standardise(part)} for part in parts)

        return run(
            model,
            loss,
            options,
            len(images),
            out,
            lambda trained, folder: save(trained, start, folder),
            seen,
            device=device,
            advance=advance,
            state=state,
            stops=stops,
            look=look,
            passes=passes,
        )


def check_batchnorm(model: nn.Module, options: FineTuning, start: Path) -> None:
    """Raise InputError where batch norm is to be frozen and there is none."""
    if options.frozen_batchnorm and not freeze_batchnorm(model):
        raise InputError(
            f"frozen_batchnorm: True: the model in {start} has no batch norm; false allowed"
        )


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Evaluation mode; in training, batch norm normalises by the batch and updates its running
    statistics."""
    model.eval()
    for layer in batchnorms(model).values():
        layer.train(training)


def vision_training() -> Training:
    """Fine-tuning of classifiers, each task's from its own start."""
    return Training(fine_tune, FineTuning, STEPWISE, start=write_start, own_pools=True)
