"""EMR: by hand, against formulas written out in float64, and where sums vanish."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.methods.sparse.emr import emr, emr_survey
from fusion.registry import METHODS
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import TASKS, assert_same_bits, toy


def vectors_of(**rows: list[float]) -> TaskVectors:
    experts = {task: {"w": torch.tensor(row)} for task, row in rows.items()}
    width = len(next(iter(rows.values())))
    return TaskVectors.from_state_dicts({"w": torch.zeros(width)}, experts)


def reference(vectors: TaskVectors, task: str, compat: str) -> dict[str, Tensor]:
    """The paper's Algorithm 1, a tensor at a time, in float64."""
    masked, own, kept = {}, 0.0, 0.0
    at = vectors.tasks.index(task)
    for name, stack in vectors.deltas.items():
        deltas = stack.double()
        sign = deltas.sum(0).sign()
        if compat == "released":
            sign[sign == 0] = -1
        agrees = deltas * sign > 0
        largest = (deltas.abs() * agrees).max(0).values if deltas[0].numel() else deltas[0]
        masked[name] = sign * largest * agrees[at]
        weight = max(1, deltas[0].numel()) if compat == "released" else 1
        own += deltas[at].abs().sum().item() / weight
        kept += masked[name].abs().sum().item() / weight
    return {
        name: base.double() + own / kept * masked[name] if name in masked else base
        for name, base in vectors.base.items()
    }


@pytest.mark.parametrize("compat", ["paper", "released"])
@pytest.mark.parametrize("task", TASKS)
def test_against_the_algorithm_in_float64(task: str, compat: str) -> None:
    vectors = toy()
    found = METHODS["emr"].merge(vectors, MergeInputs(task=task), compat=compat)
    for name, wanted in reference(vectors, task, compat).items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_by_hand() -> None:
    vectors = vectors_of(a=[4.0, -1.0, 2.0], b=[2.0, 3.0, -2.0])
    # s = (+, +, 0); τ_uni = (4, 3, 0); M_a = (1, 0, 0), ρ_a = 7/4; M_b = (1, 1, 0), ρ_b = 7/7
    assert emr(vectors, task="a")["w"].tolist() == [7.0, 0.0, 0.0]
    assert emr(vectors, task="b")["w"].tolist() == [4.0, 3.0, 0.0]


def test_a_zero_sum_is_negative_in_the_authors_script() -> None:
    vectors = vectors_of(a=[4.0, 2.0], b=[2.0, -2.0])
    # τ_uni = (4, −2); M_b = (1, 1), ρ_b = 4/6
    found = emr(vectors, task="b", compat="released")["w"]
    torch.testing.assert_close(found, torch.tensor([8 / 3, -4 / 3]))


def test_tensors_have_equal_weight_in_the_authors_script() -> None:
    experts = {
        "a": {"v": torch.tensor([2.0]), "w": torch.tensor([1.0, -3.0, 1.0, 1.0])},
        "b": {"v": torch.tensor([-1.0]), "w": torch.ones(4)},
    }
    base = {name: torch.zeros_like(tensor) for name, tensor in experts["a"].items()}
    vectors = TaskVectors.from_state_dicts(base, experts)
    # v: s = +, τ_uni = 2, M_b = 0; w: sums (2, −2, 2, 2), τ_uni = (1, −3, 1, 1), M_b = (1, 0, 1, 1)
    # ρ_b: by entries (1 + 4)/(0 + 3); by tensors' means (1/1 + 4/4)/(0 + 3/4)
    for compat, rho in (("paper", 5 / 3), ("released", 8 / 3), ("fusionbench", 8 / 3)):
        found = emr(vectors, task="b", compat=compat)  # type: ignore[arg-type]
        assert found["v"].tolist() == [0.0]
        torch.testing.assert_close(found["w"], torch.tensor([rho, 0.0, rho, rho]))


def test_one_task_is_itself() -> None:
    vectors = toy(tasks=TASKS[:1])
    expert = {
        name: base + vectors.deltas[name][0] if name in vectors.deltas else base
        for name, base in vectors.base.items()
    }
    assert_same_bits(emr(vectors, task=TASKS[0]), expert)


def test_a_zero_task_vector_is_the_base() -> None:
    vectors = vectors_of(a=[1.0, -2.0], b=[0.0, 0.0])
    assert emr(vectors, task="b")["w"].tolist() == [0.0, 0.0]
    assert run_surveys([emr_survey(vectors_of(a=[0.0], b=[0.0]))]) == (1.0, 1.0)


def test_which_task_is_named() -> None:
    row = METHODS["emr"]
    for inputs in (MergeInputs(), MergeInputs(task="mnits")):
        with pytest.raises(InputError, match="one of mnist, svhn, dtd allowed"):
            row.merge(toy(), inputs)
    assert "task" not in row.parameters
