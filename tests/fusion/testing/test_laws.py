"""Every law on every row of the table, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fusion import testing
from fusion.errors import InputError
from fusion.registry import METHODS, Selected, Static
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import (
    FITTED,
    IN_MODEL,
    LAWS,
    LEARNING,
    LOGIT,
    LOGIT_LAWS,
    ROUTED,
    SELECTED,
    STATIC,
    toy,
)


@pytest.mark.parametrize("name", STATIC)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_static(law: Callable[[laws.Merge, str], None], name: str) -> None:
    law(laws.merge, name)


@pytest.mark.parametrize("name", LOGIT)
@pytest.mark.parametrize("law", LOGIT_LAWS, ids=lambda law: law.__name__)
def test_logit_space(law: Callable[[laws.Fuse, str], None], name: str) -> None:
    law(laws.fuse, name)


def test_every_row_is_under_some_law() -> None:
    every = STATIC + LOGIT + LEARNING + ROUTED + SELECTED + FITTED + IN_MODEL
    assert sorted(every) == sorted(METHODS)


@pytest.mark.parametrize("name", SELECTED)
def test_a_selection_reads_the_select_split_unless_it_is_called_an_oracle(name: str) -> None:
    method = METHODS[name]
    assert isinstance(method, Selected)
    assert (method.selection().role == "report") == name.startswith("oracle")
    with pytest.raises(InputError, match="unknown parameter 'shares'"):
        method.selection(shares=1)


@pytest.mark.parametrize("name", STATIC)
def test_an_arena_is_what_is_handed_back(name: str) -> None:
    vectors = toy("mixed")
    arena = {key: torch.ones_like(tensor) for key, tensor in vectors.base.items()}
    for params in laws.examples(name, vectors):
        merged = laws.merge(name, vectors.into(arena), params)
        assert all(merged[key] is arena[key] for key in arena)


@pytest.mark.parametrize("name", STATIC)
def test_parameters_of_a_model_can_be_the_arena(name: str) -> None:
    vectors = toy()
    params = laws.examples(name, vectors)[0]
    arena = {key: torch.nn.Parameter(tensor.clone()) for key, tensor in vectors.base.items()}
    laws.merge(name, vectors.into(arena), params)
    laws.assert_same_bits(arena, laws.merge(name, vectors, params))


@pytest.mark.parametrize("name", STATIC)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *experts = ({"w": torch.randn(70_003, generator=generator)} for _ in range(4))
    vectors = TaskVectors.from_state_dicts(base, dict(zip(laws.TASKS, experts, strict=True)))
    threads = torch.get_num_threads()
    params = laws.examples(name, vectors)[0]
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(laws.merge(name, vectors, params))
    finally:
        torch.set_num_threads(threads)
    laws.assert_same_bits(*results)


CHUNKS = {"SERIAL", "CHUNK", "CHANGED", "ENTRIES", "PENDING", "FEW"}
"""Constants of `fusion` that say how much is worked on at a time."""


@pytest.mark.parametrize("name", STATIC)
def test_equal_values_do_not_depend_on_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = testing.tied()
    params = laws.examples(name, vectors)
    wanted = [laws.merge(name, vectors, each) for each in params]
    modules = [module for path, module in sys.modules.items() if path.startswith("fusion.")]
    changed = {(module, key) for module in modules for key in CHUNKS & set(vars(module))}
    assert len(changed) > 9
    for module, key in changed:
        if isinstance(vars(module)[key], int):
            monkeypatch.setattr(module, key, 20)
    for each, whole in zip(params, wanted, strict=True):
        for key, tensor in laws.merge(name, vectors, each).items():
            torch.testing.assert_close(tensor, whole[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_rows_say_where_they_come_from(name: str) -> None:
    laws.a_row_says_where_it_comes_from(name)
    assert METHODS[name].rule.__name__ == name


def test_a_row_without_usable_defaults_needs_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(vectors: TaskVectors, *, rank: int) -> dict[str, Tensor]:
        return {}

    row = Static(rule, paper="none", defaults="none")
    monkeypatch.setattr(testing, "METHODS", {**METHODS, "new": row})
    with pytest.raises(AssertionError, match=r"new: parameters \['rank'\] have no default"):
        laws.examples("new", toy())
