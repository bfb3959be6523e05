"""When a recorded forward pass is replayed, and when not; without a GPU, by made captures."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from actors.families.protocol import Activations
from actors.shards import cuda_graph
from actors.shards.cuda_graph import SHAPES, VARIABLE, GraphedRun, asked
from fusion.merged_layers.precision import products


class Pass:
    """A forward pass with weights that change in place; counts its calls."""

    def __init__(self) -> None:
        self.weight, self.calls = torch.tensor([2.0]), 0

    def __call__(self, activations: Activations) -> Activations:
        self.calls += 1
        return {"out": activations["x"] * self.weight}


class Replays:
    """Replays by running the work again into the tensors that it first returned."""

    def record(self, work: Callable[[], Activations]) -> Activations:
        self.work, self.outputs = work, work()
        return self.outputs

    def replay(self) -> None:
        for name, value in self.work().items():
            self.outputs[name].copy_(value)


class Frozen(Replays):
    """A graph that does not read its inputs again."""

    def replay(self) -> None:
        pass


class Rounds(Replays):
    """A graph whose kernels are not those of the plain pass."""

    def replay(self) -> None:
        super().replay()
        for value in self.outputs.values():
            value.nextafter_(torch.tensor(torch.inf))


class Waits:
    """A pass that waits for the device cannot be recorded."""

    def record(self, work: Callable[[], Activations]) -> Activations:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


def x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_replayed_passes_give_the_plain_ones_bits_after_merges_too():
    plain = Pass()
    graphed = GraphedRun(plain, Replays)
    for seed in range(3):
        plain.weight.fill_(seed + 0.5)  # as a merge into the arena
        given = {"x": x(4, 3, seed=seed)}
        assert torch.equal(graphed(given)["out"], given["x"] * plain.weight)
    assert not graphed.refused
    assert len(graphed.graphs) == 1


def test_outputs_are_not_overwritten_by_the_next_pass():
    graphed = GraphedRun(Pass(), Replays)
    graphed({"x": x(4)})
    first = graphed({"x": x(4, seed=1)})["out"]
    kept = first.clone()
    graphed({"x": x(4, seed=2)})
    assert torch.equal(first, kept)


def test_a_recorded_shape_runs_no_plain_pass():
    plain = Pass()

    class Counted(Replays):
        def replay(self) -> None:
            before = plain.calls
            super().replay()
            plain.calls = before

    graphed = GraphedRun(plain, Counted)
    graphed({"x": x(4)})
    before = plain.calls
    graphed({"x": x(4, seed=1)})
    assert plain.calls == before


REFUSED = {
    Frozen: "replayed outputs differ",
    Rounds: "replayed outputs differ",
    Waits: "operation not permitted when stream is capturing",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_graph_that_is_not_equal_is_not_used_and_the_reason_is_said(kind, caplog):
    plain = Pass()
    graphed = GraphedRun(plain, kind)
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            given = {"x": x(4, 3, seed=seed)}
            assert torch.equal(graphed(given)["out"], given["x"] * plain.weight)
    assert graphed.refused.startswith(REFUSED[kind])
    assert not graphed.graphs
    [record] = caplog.records
    assert REFUSED[kind] in record.getMessage()


def test_each_precision_has_a_graph_of_its_own():
    def layer(activations: Activations) -> Activations:
        return {"out": activations["x"] @ torch.full((4, 4), 1 + 2.0**-12)}

    run = GraphedRun(layer, Frozen)
    x = torch.full((2, 4), 1.0)
    exact = layer({"x": x})["out"]
    with products("bf16", torch.device("cpu")):
        rough = layer({"x": x})["out"]
    assert not torch.equal(rough.float(), exact)
    for _ in range(2):
        assert torch.equal(run({"x": x})["out"], exact)
        with products("bf16", torch.device("cpu")):
            assert torch.equal(run({"x": x})["out"], rough)
    assert not run.refused
    assert len(run.graphs) == 2


def test_shapes_beyond_the_first_few_take_the_plain_pass():
    plain = Pass()
    graphed = GraphedRun(plain, Replays)
    for rows in range(1, SHAPES + 3):
        given = {"x": x(rows)}
        assert torch.equal(graphed(given)["out"], 2 * given["x"])
    assert len(graphed.graphs) == SHAPES


@pytest.mark.parametrize(
    ("value", "device", "wanted"),
    [("1", "cuda", True), ("1", "cpu", False), ("0", "cuda", False), (None, "cuda", False)],
)
def test_graphs_are_asked_for_on_gpus_by_a_variable(value, device, wanted, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert asked(torch.device(device)) is wanted


def test_a_resident_model_replays(tiny, tmp_path, monkeypatch):
    from actors.shards.resident_model import ResidentModel

    base = tiny.base(tmp_path / "base")
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    given = {"pixels": pixels.to(torch.uint8)}
    plain = ResidentModel(base)
    assert plain.graphs is None
    monkeypatch.setattr("actors.shards.resident_model.asked", lambda device: True)
    monkeypatch.setattr(cuda_graph.GraphedRun.__init__, "__defaults__", (Replays,))
    graphed = ResidentModel(base)
    for _ in range(2):
        assert torch.equal(graphed.outputs(given), plain.outputs(given))
    assert graphed.graphs is not None
    assert len(graphed.graphs.graphs) == 1
