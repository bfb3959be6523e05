"""One fine-tuning from its first step to its last: the loop, averages, states, and the models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from actors.training.checkpoint import STOPS, Averages, Look, Run, blind
from actors.training.optimizer_loop import (
    PLAIN,
    Advance,
    Optimisation,
    beside,
    optimise,
    shuffled_batches,
    silent,
    staged,
)


class RunOptions(Protocol):
    """Hyper-parameters that every family's fine-tuning has."""

    @property
    def epochs(self) -> float:
        """Passes over the rows; a fraction is rounded to whole steps."""

    @property
    def batch_size(self) -> int:
        """Rows in a step."""

    @property
    def learning_rate(self) -> float:
        """The highest learning rate."""

    @property
    def weight_decay(self) -> float:
        """Weight decay."""

    @property
    def warmup(self) -> float:
        """Fraction of the steps in which the learning rate rises."""

    @property
    def clip_norm(self) -> float:
        """Largest global gradient norm."""

    @property
    def ema(self) -> float:
        """Decay of a moving average of the weights; 0: none."""

    @property
    def swa(self) -> float:
        """Fraction of the steps, at the end, whose mean weights are written; 0: none."""

    @property
    def seed(self) -> int:
        """Seed of the order of rows."""


def no_passes() -> Iterable[dict[str, Tensor]]:
    """No training rows: for models without batch norm."""
    return ()


def run(
    model: nn.Module,
    loss: Callable[[int, Tensor], Tensor],
    options: RunOptions,
    rows: int,
    out: Path,
    save: Callable[[Any, Path], None],
    seen: Callable[[Any], Tensor],
    *,
    device: str = "cpu",
    advance: Advance = silent,
    state: Path | None = None,
    stops: Sequence[float] = STOPS,
    look: Look = blind,
    passes: Callable[[], Iterable[dict[str, Tensor]]] = no_passes,
    how: Optimisation = PLAIN,
) -> Path:
    """Minimise a loss over a model's trainable parameters, and write the model and its averages.

    Results are written under a temporary name and renamed, so `out` is either missing or complete;
    if it exists, so do the averages `<out>-ema` and `<out>-swa` that were asked for.

    Args:
        model: the module, on `device`; its weights are those of the start.
        loss: (number of a step from 1, row numbers [B]) -> the step's loss.
        options: hyper-parameters.
        rows: number of training rows.
        out: the folder to create.
        save: writes a model to a folder.
        seen: rows -> outputs of the unfinished model, for `look`.
        device: where the model is.
        advance: called after each step.
        state: file in which the state of the unfinished run is saved after each of `stops`. If it
            exists, from a run with the same arguments, the run continues from it. Values that are
            read at each step may differ from then on.
        stops: fractions of the steps.
        look: called after each of `stops`, and again at the one that a run continues from.
        passes: see `Averages.models`.
        how: see `optimise`.

    Returns:
        `out`.
    """
    steps = max(1, round(options.epochs * rows / options.batch_size))
    running = Run(model, Averages(options.ema, options.swa, steps), steps, state, stops)
    found = running.resume(device)

    def after(step: int, optimiser: torch.optim.Optimizer) -> None:
        running.after(step, optimiser)
        running.show(step, look, seen)

    running.show(running.begun, look, seen)
    numbers = itertools.count(running.begun + 1)
    optimise(
        lambda chosen: loss(next(numbers), chosen),
        model,
        shuffled_batches(rows, options.batch_size, steps, options.seed),
        steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip_norm=options.clip_norm,
        advance=advance,
        after=after,
        resumed=found,
        how=how,
    )
    for kind, averaged in running.averages.models(model, passes):
        with staged(beside(out, kind)) as folder:
            save(averaged, folder)
    with staged(out) as folder:
        save(model, folder)
    running.end()
    return out
