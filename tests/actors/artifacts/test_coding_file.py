"""Coding files: what is written is read, by name; what is not a coding is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from actors.artifacts.coding_file import dump_coding, load_coding
from fusion.errors import InputError
from tests.refusals import one_line

TASKS = ("cars", "mnist")
GROUPS = ("a", "b", "c")


def coding(groups: int = 3) -> torch.Tensor:
    return torch.randn(1, 2, groups, generator=torch.Generator().manual_seed(0))


def file(tensor: torch.Tensor | None = None, about: Any = None, **changes: Any) -> bytes:
    """A file of any content."""
    about = {"format": 1, "tasks": list(TASKS), "keys": list(GROUPS)} if about is None else about
    if isinstance(about, dict):
        about = about | changes
    tensors = {"coding": coding() if tensor is None else tensor}
    return bytes(save(tensors, metadata={"coding": json.dumps(about)}))


def refusal(data: bytes) -> str:
    with one_line(start="adamerging: ") as lines:
        load_coding(data, TASKS, GROUPS, "adamerging")
    return lines[0]


@pytest.mark.parametrize("groups", [1, 3])
def test_round_trip(groups: int) -> None:
    data = dump_coding(coding(groups), TASKS, GROUPS)
    assert dump_coding(coding(groups), TASKS, GROUPS) == data
    assert torch.equal(load_coding(data, TASKS, GROUPS, "x"), coding(groups))


def test_what_is_written_is_plain() -> None:
    leaf = coding().double().requires_grad_()
    found = load_coding(dump_coding(leaf * 2, TASKS, GROUPS), TASKS, GROUPS, "x")
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, coding() * 2)
    strided = coding().transpose(1, 2).contiguous().transpose(1, 2)
    found = load_coding(dump_coding(strided, TASKS, GROUPS), TASKS, GROUPS, "x")
    assert torch.equal(found, coding())


def test_tensors_are_picked_by_name() -> None:
    data = dump_coding(coding(), TASKS, GROUPS)
    assert torch.equal(load_coding(data, TASKS, ("c", "a"), "x"), coding()[:, :, [2, 0]])
    assert torch.equal(load_coding(data, TASKS, ("b",), "x"), coding()[:, :, [1]])


def test_a_task_wise_coding_fits_any_tensors() -> None:
    data = dump_coding(coding(1), TASKS, GROUPS)
    assert torch.equal(load_coding(data, TASKS, ("x", "y"), "x"), coding(1))


def test_a_tensor_that_is_missing() -> None:
    data = dump_coding(coding(), TASKS, GROUPS)
    with pytest.raises(InputError, match=r"^adamerging: keys: no 'd', which the pool has"):
        load_coding(data, TASKS, ("a", "d"), "adamerging")


@pytest.mark.parametrize("tasks", [("mnist", "cars"), ("cars",), ("cars", "mnist", "dtd")])
def test_other_tasks(tasks: tuple[str, ...]) -> None:
    data = dump_coding(coding(), TASKS, GROUPS)
    with pytest.raises(InputError, match=r"tasks: cars, mnist; the pool has " + ", ".join(tasks)):
        load_coding(data, tasks, GROUPS, "adamerging")


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 2), (1, 2, 1), (1, 2, 4)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    said = f"shape {list(shape)}, or not finite; [1, 2, 3] needed"
    assert said in refusal(file(torch.ones(shape)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value: float) -> None:
    tensor = coding()
    tensor[0, 1, 2] = value
    assert "not finite" in refusal(file(tensor))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        dump_coding(coding(), TASKS, GROUPS)[:-1],
        dump_coding(coding(), TASKS, GROUPS)[:40],
        bytes(save({"coding": coding()})),
        bytes(save({"other": coding()}, metadata={"coding": "{}"})),
        bytes(save({"coding": coding()}, metadata={"coding": "not JSON"})),
        bytes(save({"coding": coding()}, metadata={"gate": "{}"})),
        file(about=[]),
        file(about=3),
        file(about={"tasks": list(TASKS)}),
        file(about={"keys": list(GROUPS)}),
        file(tasks=3),
        file(keys=None),
    ],
)
def test_what_is_not_a_coding_file(data: bytes) -> None:
    assert refusal(data).startswith("adamerging: not a coding file: ")


@pytest.mark.parametrize("tasks", [[1, 2], [None, "mnist"], [["cars"], "mnist"]])
def test_tasks_that_are_no_names(tasks: list[Any]) -> None:
    assert "the pool has cars, mnist" in refusal(file(tasks=tasks))
