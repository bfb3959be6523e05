"""A training run under way: averages of its weights, and a file to go on from when killed."""

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

Look: TypeAlias = Callable[[float, Callable[[Tensor], Tensor]], None]
"""A look at an unfinished model: (share of the steps done, uint8 images -> embeddings)."""

STOPS = (1 / 9, 1 / 3, 2 / 3)
"""Shares of a run's steps after which its state is kept and may be looked at."""


def blind(share: float, embed: Callable[[Tensor], Tensor]) -> None:
    """The look that is not taken."""


class Averages:
    """EMA and SWA of one run, as it goes; where both are off, nothing is kept."""

    def __init__(self, decay: float, share: float, steps: int) -> None:
        """`decay` of EMA, `share` of the last steps that SWA averages; 0: none. `steps` in all."""
        self.decay = decay
        self.first = steps - max(1, round(share * steps)) + 1 if share else steps + 1
        self.held: dict[str, Average] = {}

    def update(self, step: int, tower: nn.Module) -> None:
        """Take the weights after a step (from 1) in."""
        if self.decay:
            self.add("ema", tower, lambda held, now: ema(held, now, decay=self.decay))
        if step >= self.first:
            self.add("swa", tower, swa)

    def add(self, kind: str, tower: nn.Module, taken: Callable[..., Average]) -> None:
        """Start one average, or move it."""
        weights, held = tower.state_dict(), self.held.get(kind)
        self.held[kind] = started(weights) if held is None else taken(held, weights)

    def models(
        self, tower: nn.Module, passes: Callable[[], Iterable[dict[str, Tensor]]]
    ) -> Iterator[tuple[str, nn.Module]]:
        """`ema` and `swa`, where they are kept, as towers; the given one is not touched.

        Args:
            tower: of the run, at its end.
            passes: the training images in batches, as keywords of the tower's; read where batch
                norm's statistics have to be made anew.
        """
        for kind, average in self.held.items():
            model = copy.deepcopy(tower)
            model.load_state_dict(result(average, tower.state_dict()))
            if has_batchnorm(model):
                reestimate_batchnorm(model, passes(), forward=caller(model), size=images_in)
            yield kind, model

    def plain(self) -> dict[str, Any]:
        """As tensors and numbers."""
        return {kind: vars(average) for kind, average in self.held.items()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """The opposite of `plain`."""
        self.held = {kind: Average(**held) for kind, held in plain.items()}


def caller(model: nn.Module) -> Callable[[dict[str, Tensor]], object]:
    """The model, called with keywords."""
    return lambda batch: model(**batch)


def images_in(batch: Mapping[str, Tensor]) -> int:
    """Images of a batch."""
    return len(batch["pixel_values"])


@dataclass
class Run:
    """One fine-tuning under way."""

    tower: nn.Module
    averages: Averages
    steps: int
    file: Path | None = None
    """Where its state is kept; None: nowhere."""
    shares: Sequence[float] = STOPS
    """Of the steps, rising: after which the state is kept and the model may be looked at."""
    begun: int = 0
    """The step after which it went on; 0: it is a new one."""
    stops: dict[int, float] = field(init=False)
    """Step -> share of the run; the last step is none of them."""

    def __post_init__(self) -> None:
        at = {max(1, round(share * self.steps)): share for share in reversed(self.shares)}
        self.stops = {step: share for step, share in at.items() if step < self.steps}

    def resume(self, device: str) -> dict[str, Any] | None:
        """Put weights and averages back where a state was kept; what the optimiser needs of it."""
        if self.file is None or not self.file.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True)
        except Exception:  # torch raises what it likes for a damaged file: the run begins anew
            return None
        self.tower.load_state_dict(found["weights"])
        self.averages.restore(found["averages"])
        self.begun = int(found["step"])
        return found

    def after(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Average what a step made, and keep the state where it is time to."""
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

    def show(self, step: int, look: Look, seen: Callable[[Tensor], Tensor]) -> None:
        """Let the model be looked at, where it is time to."""
        if step in self.stops:
            look(self.stops[step], seen)

    def end(self) -> None:
        """Results are written: the state is of no more use."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
