"""Fine-tuning of CLIP for `sweeps train`: what the family offers, and tasks from their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.artifacts.head_file import read_head
from actors.data.images.inputs import ImageInputs
from actors.data.images.preprocessor_config import clip_preprocess
from actors.data.task_rows import SYNTHETIC, Rows, TaskData
from actors.families.clip.fine_tune import FineTuning, fine_tune
from actors.families.clip.pretrain import Sizes, pretrain
from actors.families.clip.synthetic import Synthetic
from actors.families.images.options import STEPWISE as OF_IMAGES
from actors.families.images.rows import images_of, outputs_of
from actors.families.protocol import Judge, Pretraining, Training, unjudged
from fusion.logits.head import as_head

STEPWISE = (
    *OF_IMAGES,
    "soft_targets",
    "soft_temperature",
    "synthetic_share",
    "synthetic_soft_targets",
)

NO_BATCHNORM = "a CLIP ViT has no batch norm; false allowed"


def fine_tune_task(
    base: Path,
    task: TaskData,
    out: Path,
    options: FineTuning,
    *,
    head: Path | None = None,
    judge: Judge = unjudged,
    **given: Any,
) -> Path:
    """Fine-tune the vision tower on a task's fit rows, and its synthetic ones. See `fine_tune`.

    Args:
        base: folder of the base.
        task: rows, and the zero-shot head.
        out: the expert's folder.
        options: hyper-parameters.
        head: the head to tune under; None: the task's.
        judge: see `Training.fine_tune`.
        given: further arguments of `fine_tune`.
    """
    images, labels = images_of(task.rows["fit"])
    synthetic = None
    if SYNTHETIC in task.rows:
        more = images_of(task.rows[SYNTHETIC])
        synthetic = Synthetic(*more, options.synthetic_share, options.synthetic_soft_targets)
    words = read_head(task.head)
    under = words if head is None else read_head(head)

    def look(share: float, embed: Callable[[Tensor], Tensor]) -> None:
        judge(share, lambda rows: logits_of(rows, embed, under))

    return fine_tune(
        base,
        images,
        labels,
        words,
        out,
        options,
        probe=None if head is None or options.head == "zero_shot" else under,
        synthetic=synthetic,
        look=look,
        **given,
    )


def logits_of(rows: Rows, embed: Callable[[Tensor], Tensor], head: Tensor) -> Tensor:
    """Logits [N, C] of a role's rows under a head, on the CPU."""
    found = as_head(head)

    def logits(images: Tensor) -> Tensor:
        z = embed(images)
        return found.to(z.device).logits(z)

    return outputs_of(rows, logits)


def clip_training() -> Training:
    """Fine-tuning of the vision tower, and pretraining of a small CLIP."""
    return Training(
        fine_tune_task,
        FineTuning,
        STEPWISE,
        refused={"frozen_batchnorm": (True, NO_BATCHNORM)},
        pretraining=Pretraining(
            pretrain,
            Sizes,
            lambda sizes: ImageInputs(clip_preprocess(sizes.image)),
            {"learning_rate": 3e-4},
        ),
    )
