"""The resident forward pass as CUDA graphs: recorded once for a shape of inputs, then replayed.

A graph launches the hundreds of kernels of a pass at once. It reads the weights where they are, so
merges in place need no new graph. `FUSION_SWEEPS_CUDA_GRAPHS=1` asks for graphs. They are used only
after a check: when a shape is first met, the replayed outputs of two batches are compared with
those of the plain pass. If one differs in a bit, or recording fails, the model never uses graphs,
and the log says why.

Deviation: this was never run on a real GPU; tests use an object with the interface of `Capture`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from actors.families.protocol import Activations
from fusion.merged_layers.precision import current

log = logging.getLogger(__name__)

VARIABLE = "FUSION_SWEEPS_CUDA_GRAPHS"
"""Environment: `1` asks for graphs; anything else, or nothing: none are used."""

SHAPES = 4
"""Graphs a model, one for each shape of inputs and precision; further ones take the plain pass.
Images have two shapes, a full batch and the last one; each graph keeps its own activations, which
the plan does not count."""

WARM = 3
"""Passes before recording, in which libraries choose their kernels. Origin: PyTorch's manual."""

Run: TypeAlias = Callable[[Activations], Activations]


class Capture(Protocol):
    """Records work on a GPU once, and replays it."""

    def record(self, work: Callable[[], Activations]) -> Activations:
        """Run the work and record its kernels; each replay writes to the tensors it returns.

        Raises:
            RuntimeError: the work does what no graph can: waits for the device, say.
        """
        ...

    def replay(self) -> None:
        """Launch the recorded kernels again, on what their input tensors hold then."""
        ...


class CudaCapture:
    """`Capture` by `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Activations]) -> Activations:
        """See `Capture.record`; warms up on a stream of its own, as PyTorch's manual asks."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph):
            return work()

    def replay(self) -> None:
        """See `Capture.replay`."""
        self.graph.replay()


@dataclass(frozen=True)
class Recorded:
    """A graph with the tensors that it reads and writes."""

    capture: Capture
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def replayed(self, activations: Activations) -> Activations:
        """Outputs for other inputs of the same shapes, in memory of their own."""
        for name, value in self.inputs.items():
            value.copy_(activations[name])
        self.capture.replay()
        return {name: value.clone() for name, value in self.outputs.items()}


class GraphedRun:
    """A forward pass that is replayed where replaying gives its bits."""

    def __init__(self, run: Run, make: Callable[[], Capture] = CudaCapture) -> None:
        """`run`: the plain pass; `make`: gives an empty graph."""
        self.run, self.make = run, make
        self.graphs: dict[tuple[object, ...], Recorded] = {}
        self.refused = ""
        """Why no graph is used; empty: they are."""

    def __call__(self, activations: Activations) -> Activations:
        """The outputs of the pass."""
        shapes = tuple((n, v.shape, v.dtype) for n, v in sorted(activations.items()))
        key = (current(next(iter(activations.values())).device), *shapes)
        found = self.graphs.get(key)
        if found is not None and not self.refused:
            return found.replayed(activations)
        if self.refused or len(self.graphs) == SHAPES:
            return self.run(activations)
        wanted = self.run(activations)
        self.record(key, activations, wanted)
        return wanted

    def record(
        self, key: tuple[object, ...], activations: Activations, wanted: Activations
    ) -> None:
        """Record a graph, and keep it if it gives the pass's bits; else use none from now on."""
        try:
            capture = self.make()
            inputs = {name: value.clone() for name, value in activations.items()}
            recorded = Recorded(capture, inputs, capture.record(lambda: self.run(inputs)))
            others = {name: value.roll(1, 0) for name, value in activations.items()}
            cases = ((activations, wanted), (others, self.run(others)))
            right = all(same(recorded.replayed(given), plain) for given, plain in cases)
        except RuntimeError as error:
            self.refuse(" ".join(str(error).split())[:200])
            return
        if right:
            self.graphs[key] = recorded
        else:
            self.refuse("replayed outputs differ from those of the plain pass")

    def refuse(self, why: str) -> None:
        """Use no graph from now on."""
        self.refused = why
        self.graphs.clear()
        log.warning("CUDA graphs: not used: %s", why)


def same(found: Activations, wanted: Activations) -> bool:
    """Whether two passes gave the same bits."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], value) for name, value in wanted.items()
    )


def asked(device: torch.device) -> bool:
    """Whether graphs are asked for, on a GPU."""
    return device.type == "cuda" and os.environ.get(VARIABLE) == "1"
