"""What every training here shares: AdamW's loop, batches, pixels, and folders that appear whole.

Axes: N images, B batch, H × W pixels.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

Advance: TypeAlias = Callable[[int, int, float], None]
"""Progress: (steps done, steps in all, loss of the last step)."""

After: TypeAlias = Callable[[int, torch.optim.Optimizer], None]
"""What is done after a step: (its number from 1, the optimiser)."""


def silent(step: int, total: int, loss: float) -> None:
    """The progress callback that reports nothing."""


def nothing(step: int, optimiser: torch.optim.Optimizer) -> None:
    """Nothing is done after a step."""


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
) -> None:
    """Minimise `loss(rows)` over the trainable parameters of `module` for `steps` steps.

    Args:
        loss: of the row numbers [B] of a step.
        module: holds the parameters.
        batches: the rows of each step, from the first.
        steps: in all; the schedule's length.
        learning_rate: at its highest.
        weight_decay: on matrices only.
        warmup: fraction of the steps in which the learning rate rises.
        clip_norm: largest global gradient norm.
        advance: called after each step.
        after: called after each step with its number (from 1) and the optimiser, `advance` done.
        resumed: `step` and `optimiser`'s state of a run to go on with, whose weights `module` has;
            rate and decay may be others from there on.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in trainable]
    decayed = [p for n, p in trainable if p.ndim > 1 and "embedding" not in n]
    kept = [p for n, p in trainable if p.ndim <= 1 or "embedding" in n]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept},
    ]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine(steps, warmup))
    begun = 0
    if resumed is not None:
        begun = schedule.last_epoch = int(resumed["step"])
        optimiser.load_state_dict(resumed["optimiser"])
        # Rates are those of now: of a run that goes on as it was, the same to the bit.
        for group, own in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = learning_rate * cosine(steps, warmup)(begun)
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


def cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Step number -> share of the highest learning rate: a linear rise, then half a cosine.

    >>> [round(cosine(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def shuffled_batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers [B] of `steps` batches: each pass over `count` rows in a new order.

    A batch may span two passes, so all are equally large (all rows, where there are fewer).
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
    """transformers without its own progress bars, and without its notes on unused tensors."""
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
    """Torch with a fixed number of CPU threads; the caller's number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write in that becomes `out` when the block ends without an exception.

    A rename is atomic, so `out` is absent or whole, whenever the program is killed. Where another
    program finished the same folder first, its result stays.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            os.rename(folder, out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def beside(out: Path, kind: str) -> Path:
    """Where an average of a run is kept: `<out>-ema`, `<out>-swa`."""
    return out.with_name(f"{out.name}-{kind}")
