"""Shared parts of all trainings: the optimiser's loop, batches, threads, and atomic folders.

Axes: N rows, B batch.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from actors.files.atomic import share_folder

Advance: TypeAlias = Callable[[int, int, float], None]
"""Progress callback: (steps done, total steps, loss of the last step)."""

After: TypeAlias = Callable[[int, torch.optim.Optimizer], None]
"""Callback after a step: (its number from 1, the optimiser)."""


def silent(step: int, total: int, loss: float) -> None:
    """The progress callback that reports nothing."""


def nothing(step: int, optimiser: torch.optim.Optimizer) -> None:
    """The callback that does nothing after a step."""


Schedule: TypeAlias = Callable[[int, float], Callable[[int], float]]
"""(steps, fraction that warms up) -> step number -> fraction of the highest learning rate."""


def cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Step number -> fraction of the highest learning rate: a linear rise, then half a cosine.

    >>> [round(cosine(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def linear(steps: int, warmup: float) -> Callable[[int], float]:
    """Step number -> fraction of the highest learning rate: a linear rise, then a linear fall to 0.

    >>> [round(linear(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.12]
    """
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)

    return factor


def constant(steps: int, warmup: float) -> Callable[[int], float]:
    """Step number -> fraction of the highest learning rate: a linear rise, then 1.

    >>> [constant(10, 0.2)(step) for step in (0, 1, 9)]
    [0.5, 1.0, 1.0]
    """
    rise = max(1, round(steps * warmup))
    return lambda step: min(1.0, (step + 1) / rise)


def matrices(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, and no table of embeddings."""
    return parameter.ndim > 1 and "embedding" not in name


def matrices_and_tables(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or a table of embeddings: no bias, no norm."""
    return parameter.ndim > 1


def adamw(
    groups: list[dict[str, Any]], learning_rate: float, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW of Loshchilov and Hutter (2019, arXiv:1711.05101), β 0.9 and 0.999."""
    return torch.optim.AdamW(groups, lr=learning_rate, eps=eps, weight_decay=0.0, fused=True)


@dataclass(frozen=True)
class Optimisation:
    """How a loss is minimised: what differs between families, beside the rates."""

    schedule: Schedule = cosine
    decayed: Callable[[str, Tensor], bool] = matrices
    """(name, parameter) -> whether weight decay applies to it."""
    optimiser: Callable[[list[dict[str, Any]], float], torch.optim.Optimizer] = adamw
    """(groups of parameters, the highest learning rate) -> the optimiser."""


PLAIN = Optimisation()


def optimise(
    loss: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    batches: Iterator[Tensor],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    clip_norm: float,
    advance: Advance,
    after: After = nothing,
    resumed: Mapping[str, Any] | None = None,
    how: Optimisation = PLAIN,
) -> None:
    """Minimise `loss(rows)` over the trainable parameters of `module` for `steps` steps.

    Args:
        loss: loss of a step, given its row numbers [B].
        module: module with the parameters.
        batches: row numbers of each step, from the first step on.
        steps: total number, which is the length of the schedule.
        learning_rate: the highest one.
        weight_decay: applied to the parameters that `how` names.
        warmup: fraction of the steps in which the learning rate rises.
        clip_norm: largest global gradient norm.
        advance: called after each step.
        after: called after `advance` with the step's number (from 1) and the optimiser.
        resumed: `step` and `optimiser` state of a run to continue, whose weights `module` has;
            learning rate and weight decay may differ from then on.
        how: schedule, decayed parameters, optimiser.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in trainable]
    decayed = [p for n, p in trainable if how.decayed(n, p)]
    kept = [p for n, p in trainable if not how.decayed(n, p)]
    factor = how.schedule(steps, warmup)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept},
    ]
    optimiser = how.optimiser(groups, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    begun = 0
    if resumed is not None:
        begun = schedule.last_epoch = int(resumed["step"])
        optimiser.load_state_dict(resumed["optimiser"])
        # The current rates replace the saved ones; if they are equal, so are all bits.
        for group, own in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = learning_rate * factor(begun)
            group["initial_lr"] = learning_rate
            group["weight_decay"] = own.get("weight_decay", 0.0)
    for step, rows in enumerate(batches, 1):
        if step <= begun:
            continue
        value = loss(rows)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        advance(step, steps, float(value.detach()))
        after(step, optimiser)


def shuffled_batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers [B] of `steps` batches: each epoch over `count` rows has a new order.

    A batch may span two epochs, so all have the same size (all rows, if there are fewer).
    """
    rng = torch.Generator().manual_seed(seed)
    size = min(batch_size, count)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=rng)])
        yield waiting[:size]
        waiting = waiting[size:]


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off transformers' progress bars and its messages about unused tensors."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Set the number of torch's CPU threads, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write in, which is renamed to `out` if the block ends without an exception.

    A rename is atomic, so `out` is missing or complete even if the program is killed. If another
    program finished the same folder first, its result is kept. Modes follow the umask.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        share_folder(folder)
        try:
            os.rename(folder, out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def beside(out: Path, kind: str) -> Path:
    """Folder of an average of a run: `<out>-ema`, `<out>-swa`."""
    return out.with_name(f"{out.name}-{kind}")
