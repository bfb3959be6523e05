"""State of a running training: averages of its weights, and a file to resume from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from actors.files.atomic import replacing
from fusion.methods.soups.weight_averaging import (
    Average,
    ema,
    has_batchnorm,
    reestimate_batchnorm,
    result,
    started,
    swa,
)

Look: TypeAlias = Callable[[float, Callable[[Any], Tensor]], None]
"""Callback with an unfinished model: (fraction of the steps done, rows -> outputs), of what the
family reads and gives: uint8 images and embeddings, token ids and logits."""

STOPS = (1 / 9, 1 / 3, 2 / 3)
"""Fractions of a run's steps after which its state is saved and the callback is called."""


def blind(share: float, seen: Callable[[Any], Tensor]) -> None:
    """The callback that does nothing."""


class Averages:
    """EMA and SWA of the weights during a run; nothing is kept if both are off."""

    def __init__(self, decay: float, share: float, steps: int) -> None:
        """`decay` of EMA; `share` of the last steps that SWA averages; 0: off. `steps`: total."""
        self.decay = decay
        self.first = steps - max(1, round(share * steps)) + 1 if share else steps + 1
        self.averages: dict[str, Average] = {}

    def update(self, step: int, tower: nn.Module) -> None:
        """Add the weights after a step (counted from 1)."""
        if self.decay:
            self.add("ema", tower, lambda held, now: ema(held, now, decay=self.decay))
        if step >= self.first:
            self.add("swa", tower, swa)

    def add(self, kind: str, tower: nn.Module, taken: Callable[..., Average]) -> None:
        """Start one average, or update it."""
        weights, held = tower.state_dict(), self.averages.get(kind)
        self.averages[kind] = started(weights) if held is None else taken(held, weights)

    def models(
        self, tower: nn.Module, passes: Callable[[], Iterable[dict[str, Tensor]]]
    ) -> Iterator[tuple[str, nn.Module]]:
        """Models with the averaged weights, `ema` and `swa`; the given model is not changed.

        Args:
            tower: the model at the end of the run.
            passes: the training rows in batches, as keyword arguments of the model; used if the
                statistics of batch norm must be computed again.
        """
        for kind, average in self.averages.items():
            model = copy.deepcopy(tower)
            model.load_state_dict(result(average, tower.state_dict()))
            if has_batchnorm(model):
                reestimate_batchnorm(model, passes(), forward=caller(model), size=rows_in)
            yield kind, model

    def plain(self) -> dict[str, Any]:
        """State as tensors and numbers."""
        return {kind: vars(average) for kind, average in self.averages.items()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Load the state from `plain`."""
        self.averages = {kind: Average(**held) for kind, held in plain.items()}


def caller(model: nn.Module) -> Callable[[dict[str, Tensor]], object]:
    """A function that calls the model with keyword arguments."""
    return lambda batch: model(**batch)


def rows_in(batch: Mapping[str, Tensor]) -> int:
    """Number of rows of a batch."""
    return len(next(iter(batch.values())))


@dataclass
class Run:
    """One running fine-tuning."""

    tower: nn.Module
    averages: Averages
    steps: int
    file: Path | None = None
    """File of its state; None: it is not saved."""
    shares: Sequence[float] = STOPS
    """Increasing fractions of the steps after which the state is saved and the callback called."""
    begun: int = 0
    """The step after which it was resumed; 0: a new run."""
    stops: dict[int, float] = field(init=False)
    """Step -> fraction of the run; the last step is not included."""

    def __post_init__(self) -> None:
        at = {max(1, round(share * self.steps)): share for share in reversed(self.shares)}
        self.stops = {step: share for step, share in at.items() if step < self.steps}

    def resume(self, device: str) -> dict[str, Any] | None:
        """Load weights and averages of a saved state, if any; returns the optimiser's state."""
        if self.file is None or not self.file.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True)
        except Exception:  # torch raises any exception on a damaged file: the run starts again
            return None
        self.tower.load_state_dict(found["weights"])
        self.averages.restore(found["averages"])
        self.begun = int(found["step"])
        return found

    def after(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Update the averages after a step, and save the state if it is due."""
        self.averages.update(step, self.tower)
        if self.file is not None and step in self.stops:
            state = {
                "step": step,
                "weights": self.tower.state_dict(),
                "averages": self.averages.plain(),
                "optimiser": optimiser.state_dict(),
            }
            with replacing(self.file) as part:
                torch.save(state, part)

    def show(self, step: int, look: Look, seen: Callable[[Any], Tensor]) -> None:
        """Call the callback with the model if it is due."""
        if step in self.stops:
            look(self.stops[step], seen)

    def end(self) -> None:
        """Delete the state, after the results are written."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
