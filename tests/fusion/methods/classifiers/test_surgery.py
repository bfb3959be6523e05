"""Representation Surgery: by hand, against the released code in float64, and what it reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.head import CosineHead
from fusion.logits.optimize import draw
from fusion.methods.classifiers.interface import MERGED, TaskEmbeddings
from fusion.methods.classifiers.surgery import repaired, surgery, surgery_logits
from fusion.registry import METHODS
from tests.fusion.logit_world import EXPERTS, World


def data_of(given: Tensor, wanted: Tensor, task: str = "a") -> TaskEmbeddings:
    z = {MERGED: given, "a": wanted}
    head = CosineHead(torch.eye(2, given.shape[1]).to(given))
    return TaskEmbeddings(("a", "b"), head, pytest.fail, lambda source, *_: z[source], task)


def test_a_module_by_hand() -> None:
    # W_down·Z = (2, −1); ReLU: (2, 0); W_up·(2, 0) = (2, 4)
    down, up = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[1.0, 9.0], [2.0, 9.0]])
    assert repaired(torch.tensor([[1.0, 2.0]]), down, up).tolist() == [[-1.0, -2.0]]
    kept, head = {"down": down, "up": up}, CosineHead(torch.eye(2))
    z = surgery_logits(lambda source: torch.tensor([[1.0, 2.0]]), head, kept, ("a",))
    torch.testing.assert_close(z, torch.tensor([[-1.0, -2.0]]) / 5**0.5)


def test_no_steps_are_the_merged_model() -> None:
    given, wanted = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    found = surgery(data_of(given, wanted), steps=0)
    assert not found.kept["up"].any()
    assert found.kept["down"].shape == (16, 4)
    assert float(found.kept["down"].abs().max()) <= 0.5  # 1/√4
    assert found.chosen["distance"] == found.chosen["before"] > 0


def test_against_the_released_code_s_loop_in_float64() -> None:
    """Two bias-free linear layers, ReLU between them, nn.L1Loss and Adam, on the same rows."""
    generator = torch.Generator().manual_seed(1)
    given, wanted = torch.randn(2, 40, 6, generator=generator, dtype=torch.float64)
    start = surgery(data_of(given, wanted), steps=0, rank=3, seed=5).kept["down"]
    down, up = nn.Linear(6, 3, bias=False).double(), nn.Linear(3, 6, bias=False).double()
    with torch.no_grad():
        down.weight.copy_(start)
        up.weight.zero_()
    adam = torch.optim.Adam([down.weight, up.weight], lr=1e-2)
    for step in range(50):
        rows = draw(40, 8, step, 5)
        feature = given[rows]
        loss = nn.L1Loss()(feature - up(nn.ReLU()(down(feature))), wanted[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    found = surgery(
        data_of(given, wanted), rank=3, learning_rate=1e-2, steps=50, batch_size=8, seed=5
    )
    torch.testing.assert_close(found.kept["down"], down.weight.detach())
    torch.testing.assert_close(found.kept["up"], up.weight.detach())
    left = (given - up(down(given).relu()) - wanted).abs().mean()
    assert found.chosen["distance"] == pytest.approx(float(left))
    assert found.chosen["distance"] < found.chosen["before"]


def test_it_comes_nearer_to_the_expert_on_rows_that_it_has_not_read() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(400, 8, generator=generator)
    bias = torch.randn(2, 8, 2, generator=generator)
    given = wanted + (wanted @ bias[0]).relu() @ bias[1].T / 4  # what merging has changed
    found = surgery(data_of(given[:300], wanted[:300]), rank=4, steps=500, learning_rate=1e-2)
    assert found.chosen["distance"] < 0.8 * found.chosen["before"]
    better = repaired(given[300:], found.kept["down"], found.kept["up"])
    assert (better - wanted[300:]).abs().mean() < 0.8 * (given - wanted)[300:].abs().mean()


def test_its_logits_are_those_of_the_task_s_head() -> None:
    world = World()
    found = METHODS["surgery"].fit(world.data, steps=20)
    assert world.read == {"fit"}
    better = repaired(world.z[MERGED, "report"], found.kept["down"], found.kept["up"])
    z = world.logits("surgery", found.kept, "report", steps=20)
    torch.testing.assert_close(z, logits(better, world.head))


def test_labels_are_not_read() -> None:
    data = replace(World().data, labels=pytest.fail)
    METHODS["surgery"].fit(data, steps=1)


def test_a_task_without_an_expert_is_refused() -> None:
    with pytest.raises(InputError, match="task 'c': no expert of its name; experts: a, b"):
        METHODS["surgery"].fit(replace(World().data, task="c"))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    given = torch.full((4, 3), torch.inf)
    with pytest.raises(InputError, match="loss nan in step 0 is not finite"):
        surgery(data_of(given, given), steps=2)


def test_facts() -> None:
    row = METHODS["surgery"]
    params = {"of": {"ties": {"density": 0.3}}}
    ((name, its),) = row.merged_by(params).items()
    assert (name, its["density"], its["merge"]) == ("ties", 0.3, "mean")
    assert row.footprint(8, params) == METHODS["ties"].footprint(8, {})
    assert METHODS["tip_adapter"].merged_by({}) is None
    for of in ("emr", "regmean", "adamerging"):
        with pytest.raises(InputError, match="a method that merges weights alone into one model"):
            row.bound({"of": of})
    assert World().data.experts == EXPERTS
