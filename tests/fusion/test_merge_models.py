"""`fusion.merge` on modules and state dicts; what it refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor, nn

import fusion
from fusion import merge_models
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws

BASE = {"w": torch.zeros(3)}
EXPERTS = {"a": {"w": torch.tensor([1.0, 0.0, 2.0])}, "b": {"w": torch.ones(3)}}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return made.eval()


def test_state_dicts_by_hand() -> None:
    merged = fusion.merge("task_arithmetic", BASE, EXPERTS, scale=0.5)
    assert merged["w"].tolist() == [1.0, 0.5, 1.5]
    assert BASE["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if m.reads == {"weights"}))
def test_a_merge_has_the_bits_of_the_row(name: str) -> None:
    base = laws.state_dict("mixed", 0)
    experts = {task: laws.state_dict("mixed", 1 + at) for at, task in enumerate(laws.TASKS)}
    vectors = TaskVectors.from_state_dicts(base, experts)
    for params in laws.examples(name, vectors):
        merged = fusion.merge(name, base, experts, **params)
        laws.assert_same_bits(merged, laws.merge(name, vectors, params))


def test_modules_give_a_module_and_stay_as_they_are() -> None:
    base, experts = network(0), {"a": network(1), "b": network(2)}
    before = copy.deepcopy(base.state_dict())
    merged = fusion.merge("simple_average", base, experts)
    assert isinstance(merged, nn.Sequential)
    laws.assert_same_bits(base.state_dict(), before)
    for name, tensor in merged.state_dict().items():
        states = [each.state_dict()[name].double() for each in experts.values()]
        torch.testing.assert_close(tensor.double(), (states[0] + states[1]) / 2)
    assert merged(torch.ones(1, 4)).requires_grad
    with torch.no_grad():
        merged[0].weight.zero_()
    assert bool(base[0].weight.any())


def test_a_model_for_each_task() -> None:
    wanted = METHODS["emr"].merge(
        TaskVectors.from_state_dicts(BASE, EXPERTS), MergeInputs(task="b")
    )
    laws.assert_same_bits(fusion.merge("emr", BASE, EXPERTS, task="b"), wanted)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("tys", {}, "unknown method 'tys'; did you mean 'ties'?"),
        ("ties", {"density": 2.0}, "ties: density: 2.0; float in [0, 1] allowed"),
        ("ties", {"densty": 0.5}, "ties: unknown parameter 'densty'; did you mean 'density'?"),
        ("emr", {}, "emr: task: None: one model a task; one of a, b allowed"),
        ("ties", {"task": "a"}, "ties: task: 'a': makes one model for all tasks"),
        ("fisher", {}, "fisher: needs rows of the fit split of each task, which weights alone"),
        ("adamerging", {}, "adamerging: needs unlabelled rows of each task, which weights"),
        ("greedy_soup", {}, "greedy_soup: needs labelled rows of the select split, which"),
        ("ensemble", {}, "ensemble: needs the experts' outputs of each row, which weights"),
        ("dawin", {}, "dawin: needs the experts' outputs of each row, which weights alone"),
    ],
)
def test_refused_in_one_line(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as found:
        fusion.merge(method, BASE, EXPERTS, **options)  # type: ignore[call-overload]
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("base", "experts", "message"),
    [
        (BASE, {}, "experts: dict: a mapping of names to models needed"),
        (BASE, [BASE], "experts: list: a mapping of names to models needed"),
        (3, EXPERTS, "base: int; a torch module, a state dict, a folder or a hub id allowed"),
        (BASE, {"a": network(0)}, "expert 'a': Sequential: a state dict needed, as the base is"),
        (network(0), {"a": BASE}, "expert 'a': dict: a torch module needed, as the base is"),
        ("folder", {"a": BASE}, "expert 'a': dict: a folder or hub id needed, as the base is"),
        (BASE, {"a": {"v": torch.ones(3)}}, "expert 'a': tensor 'w': missing"),
    ],
)
def test_models_that_do_not_fit(base: object, experts: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        fusion.merge("ties", base, experts)  # type: ignore[call-overload]


def opened(base: str, experts: Mapping[str, str]) -> merge_models.OpenedFolders:
    """A reader of folders that reads none."""
    assert (base, dict(experts)) == ("folder", {"a": "one", "b": "two"})

    def complete(merged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**merged, "head": torch.ones(1)}

    return merge_models.OpenedFolders(TaskVectors.from_state_dicts(BASE, EXPERTS), complete)


def test_folders_are_opened_by_the_registered_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("it", f"{__name__}:opened", merge_models.READERS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: opened)
    monkeypatch.setattr(merge_models, "entry_points", lambda group: [point])
    merged = fusion.merge("task_arithmetic", "folder", {"a": "one", "b": "two"}, scale=0.5)
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {
        "w": [1.0, 0.5, 1.5],
        "head": [1.0],
    }


def test_no_reader_of_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_models, "entry_points", lambda group: [])
    with pytest.raises(InputError, match="base: 'folder': no installed package reads model"):
        fusion.merge("ties", "folder", {"a": "one"})
