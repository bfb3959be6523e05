"""Fine-tuning of a BERT or RoBERTa classifier on one task: all weights, cross-entropy.

Axes: N rows, B batch, n tokens of the longest row, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, load_config
from actors.data.protocol import Activations
from actors.data.task_rows import TaskData
from actors.data.text.opened_rows import open_role, outputs_of_role
from actors.families.bert.architecture import BERT, ROBERTA
from actors.families.bert.fresh_classifier import check_encoder, save, write_start
from actors.families.bert.inputs import bert_inputs
from actors.families.bert.inspect import inspected
from actors.families.protocol import Judge, Training, unjudged
from actors.training.checkpoint import STOPS
from actors.training.fine_tuning import run
from actors.training.optimizer_loop import (
    Advance,
    Optimisation,
    adamw,
    cosine,
    cpu_threads,
    linear,
    matrices_and_tables,
    quiet,
    silent,
)
from actors.training.precision import exact_products
from actors.training.random_numbers import seeded

ScheduleName: TypeAlias = Literal["linear", "cosine"]

SCHEDULES = {"linear": linear, "cosine": cosine}

EPSILON = 1e-6
"""ε of Adam in the BERT authors' code, and in RoBERTa's paper."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Hyper-parameters of `fine_tune`; `finetune` of a training file has these names and ranges.

    Defaults are of the ranges that BERT's authors searched (Devlin et al. 2019, arXiv:1810.04805,
    appendix A.3: batch size 16 or 32, learning rate 2e-5, 3e-5 or 5e-5, 2 to 4 epochs) and of their
    code: weight decay 0.01, a tenth of the steps to warm up, a linear fall to 0.
    """

    epochs: Annotated[float, Interval(gt=0)] = 3.0
    """Passes over the rows; a fraction is rounded to whole steps."""
    batch_size: Annotated[int, Interval(ge=1)] = 32
    """Rows in a step, padded to the longest of them."""
    learning_rate: Annotated[float, Interval(gt=0)] = 2e-5
    """Highest learning rate of AdamW."""
    weight_decay: Annotated[float, Interval(ge=0)] = 0.01
    """Weight decay of AdamW, on matrices and tables of embeddings (not on biases and norms)."""
    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Fraction of the steps in which the learning rate rises."""
    schedule: ScheduleName = "linear"
    """How the learning rate falls to 0 afterwards."""
    label_smoothing: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Label smoothing: fraction of the target spread over all classes."""
    clip_norm: Annotated[float, Interval(gt=0)] = 1.0
    """Largest global gradient norm."""
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, written to `<out>-ema`, warmed up as in
    `ema_decay`; 0: none."""
    swa: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Fraction of the steps, at the end, whose mean weights are written to `<out>-swa`; 0: none.
    The schedule stays: SWA's constant rate is not used."""
    seed: Annotated[int, Interval(ge=0)] = 0
    """Seed of the order of rows and of dropout."""


STEPWISE = ("learning_rate", "weight_decay", "label_smoothing", "clip_norm")


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
    """Fine-tune a classifier on a task's fit rows: encoder, pooler and classifier, in float32.

    Dropout is that of the configuration; its masks depend on the seed and the step. The attention
    mask is given explicitly. Class names stay `id2label`.

    Args:
        start: folder of a classifier of the task's classes; see `write_start`.
        task: rows, prepared for the model.
        out: the expert's folder: `…ForSequenceClassification`, with the tokenizer beside it.
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
    """
    import transformers

    exact_products()
    about = opened(start)
    inputs = bert_inputs(about)
    rows = open_role(inputs, task.rows["fit"])
    labels = rows.labels.to(device)
    with cpu_threads(threads), quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            start, dtype=torch.float32
        ).to(device)

        def logits(batch: Activations) -> Tensor:
            given = {name: each.to(device) for name, each in batch.items()}
            types = given["types"] if about.fields["type_vocab_size"] > 1 else None
            found: Tensor = model(
                input_ids=given["ids"], attention_mask=given["mask"].long(), token_type_ids=types
            ).logits
            return found

        def loss(step: int, at: Tensor) -> Tensor:
            model.train()
            with seeded(options.seed, step, "dropout", device):
                z = logits(rows.batch(at))
            return F.cross_entropy(z, labels[at], label_smoothing=options.label_smoothing)

        def seen(batch: Activations) -> Tensor:
            model.eval()
            with torch.no_grad():
                return logits(batch).cpu()

        def look(share: float, seen: Callable[[Any], Tensor]) -> None:
            judge(share, lambda chosen: outputs_of_role(inputs, chosen, seen))

        schedule = SCHEDULES[options.schedule]
        return run(
            model,
            loss,
            options,
            len(labels),
            out,
            lambda trained, folder: save(trained, about, folder),
            seen,
            device=device,
            advance=advance,
            state=state,
            stops=stops,
            look=look,
            how=Optimisation(schedule, matrices_and_tables, partial(adamw, eps=EPSILON)),
        )


def opened(folder: Path) -> Checkpoint:
    """The classifier in a folder, by its headers."""
    config = load_config(folder, "start", (BERT, ROBERTA))
    return inspected(str(folder), folder, config, "start")


def bert_training() -> Training:
    """Fine-tuning of classifiers, each task's from its own start."""
    return Training(fine_tune, FineTuning, STEPWISE, start=write_start, check=check_encoder)
