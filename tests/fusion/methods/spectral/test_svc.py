"""svc by hand, against a textbook in float64, on top of every merge, and its parameter `of`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion
from fusion.errors import InputError
from fusion.kinds import MergeInputs
from fusion.registry import METHODS
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.task_vectors import TaskVectors
from sweeps.spec.method import read_methods
from tests.fusion.draws import drawn_as_double as drawn
from tests.fusion.laws import STATIC, TASKS, assert_same_bits, examples, toy
from tests.fusion.methods.spectral.matrices import vectors_of

SUM = {"task_arithmetic": {"scale": 1.0}}


def textbook(merged: Tensor, deltas: Tensor, alpha: float) -> Tensor:
    """Direction by direction, task by task, with a full decomposition."""
    left, values, right = torch.linalg.svd(merged, full_matrices=False)
    found = torch.zeros_like(merged)
    for u, sigma, v in zip(left.T, values, right, strict=True):
        coefficients = []
        for delta in deltas:
            own = u @ delta
            coefficients.append(max(alpha, float((u @ merged) @ own / (own @ own))))
        factor = len(deltas) / sum(coefficients)
        found += factor * sigma * torch.outer(u, v)
    return found


def test_by_hand() -> None:
    # Two tasks share the first direction, which the sum counts twice; the third has one task.
    first, second = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([3.0, 0.0]))
    merged = fusion.svc(vectors_of(torch.stack([first, second])), of=SUM, alpha=0.5)["w"]
    torch.testing.assert_close(merged, torch.diag(torch.tensor([3.0, 2 / 1.5])))


def test_an_attenuated_direction_is_enlarged_at_most_by_one_over_alpha() -> None:
    delta = torch.diag(torch.tensor([4.0, 2.0]))
    for scale, alpha, factor in ((0.5, 0.1, 1.0), (0.5, 0.8, 0.625), (2.0, 0.1, 1.0)):
        of = {"task_arithmetic": {"scale": scale}}
        merged = fusion.svc(vectors_of(delta[None]), of=of, alpha=alpha)["w"]
        torch.testing.assert_close(merged, delta * factor)


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 20, 9), (4, 9, 20), (2, 140, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_against_a_textbook(shape: tuple[int, int, int], dtype: torch.dtype, alpha: float) -> None:
    deltas = drawn(*shape, dtype=dtype)
    wanted = textbook(0.3 * deltas.double().sum(0), deltas.double(), alpha)
    merged = fusion.svc(vectors_of(deltas), alpha=alpha)["w"]
    error = float((merged.double() - wanted).norm() / wanted.norm())
    assert error < (1e-5 if dtype == torch.float32 else 1e-12)


def test_a_task_without_a_response_counts_as_alpha_whatever_the_scale_of_weights() -> None:
    first, second = torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0]))
    for size in (1e-20, 1.0, 1e10):
        merged = fusion.svc(vectors_of(size * torch.stack([first, second])), of=SUM, alpha=0.25)
        wanted = size * torch.diag(torch.tensor([3.0, 2.0])) * 2 / 1.25
        torch.testing.assert_close(merged["w"], wanted)


MERGES = [
    name
    for name in STATIC
    if METHODS[name].reads == {"weights"} and METHODS[name].output == "one_model"
]


@pytest.mark.parametrize("name", MERGES)
def test_it_composes_with_every_merge_of_weights(name: str) -> None:
    vectors = toy()
    params = examples(name, vectors)[0]
    plain = METHODS[name].merge(vectors, **params)
    treated = METHODS["svc"].merge(vectors, of={name: params})
    for key, base in vectors.base.items():
        if base.ndim != 2 or not base.is_floating_point():
            assert torch.equal(treated[key], plain[key]), key
            continue
        moved = plain[key].double() - base.double()
        if not moved.any():
            assert torch.equal(treated[key], base), key
            continue
        if name.startswith("iso_"):
            continue  # equal singular values: the directions are arbitrary
        wanted = textbook(moved, vectors.deltas[key].double(), 0.1)
        error = float((treated[key].double() - base.double() - wanted).norm() / wanted.norm())
        assert error < 1e-3, (key, error)


def test_shards_share_the_survey_of_the_other_method() -> None:
    vectors, row = toy(), METHODS["svc"]
    params: dict[str, Any] = {"of": {"ties": {"density": 0.3}}}
    names = list(vectors.base)
    shards = [vectors.restrict(names[:3]), vectors.restrict(names[3:])]
    survey = run_surveys([row.start_survey(shard, **params) for shard in shards])
    assert survey == run_surveys([METHODS["ties"].start_survey(vectors, density=0.3)])
    parts = [row.merge(shard, MergeInputs(survey=survey), **params) for shard in shards]
    found = {key: part[key] for part in parts for key in part}
    assert_same_bits({key: found[key] for key in names}, row.merge(vectors, **params))


def test_a_survey_depends_on_what_that_of_the_other_method_does() -> None:
    row = METHODS["svc"]
    few = row.survey_params({"of": {"ties": {"density": 0.3, "scale": 0.5}}, "alpha": 0.5})
    assert few == row.survey_params({"of": {"ties": {"density": 0.3, "scale": 0.7}}})
    assert few != row.survey_params({"of": {"ties": {"density": 0.4, "scale": 0.5}}})
    assert row.survey_params({"of": "tsv_m"}) == {"of": {"tsv_m": {}}}
    assert run_surveys([row.start_survey(toy())]) is None


def test_parameters_of_the_other_method_are_completed() -> None:
    bound = METHODS["svc"].bound({"of": "tsv_m"})
    assert bound == METHODS["svc"].bound({"of": {"tsv_m": {"scale": 1}}})
    assert bound["of"]["tsv_m"]["scale"] == 1.0
    assert METHODS["svc"].bound({})["of"] == {
        "task_arithmetic": METHODS["task_arithmetic"].bound({})
    }


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("tsv", "unknown method 'tsv'"),
        ({}, "a method, or a mapping of one method to its parameters, allowed"),
        ({"ties": {}, "tsv_m": {}}, "a mapping of one method to its parameters"),
        (3, "a mapping of one method to its parameters"),
        ({"ties": {"densty": 0.2}}, "ties: unknown parameter 'densty'; did you mean 'density'"),
        ({"ties": {"density": 2.0}}, "ties: density: 2.0; float in [0, 1] allowed"),
        ({"ties": [0.2]}, "ties: [0.2]: a mapping of parameters, or {}, allowed"),
        ("emr", "emr: a method that merges weights alone into one model allowed"),
        ("fisher", "fisher: a method that merges weights alone into one model allowed"),
        ("adamerging", "adamerging: a method that merges weights alone"),
    ],
)
def test_what_cannot_be_treated_is_refused_with_the_reason(of: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        METHODS["svc"].merge(toy(), of=of)
    assert str(refused.value).startswith(f"svc: of: {of!r}; ")
    with pytest.raises(ValueError, match=re.escape(said)):
        read_methods({"svc": {"of": of}})


def test_spaces_inside_a_sweep_file_reach_the_other_method() -> None:
    entry = {"of": {"ties": {"density": {"grid": [0.1, 0.2]}}}, "alpha": {"grid": [0.1, 1]}}
    found = read_methods({"svc": entry})["svc"]
    assert set(found.grids) == {("of", "ties", "density"), ("alpha",)}
    wrong = {"of": {"ties": {"density": {"grid": [0.1, 2]}}}}
    said = r"of\.ties\.density\.grid\.1\n.*ties: density: 2; float in \[0, 1\] allowed"
    with pytest.raises(ValueError, match=said):
        read_methods({"svc": wrong})


def test_a_method_treats_a_treated_merge() -> None:
    vectors = toy()
    twice = METHODS["svc"].merge(vectors, of={"svc": {"of": SUM, "alpha": 0.5}}, alpha=0.5)
    once = METHODS["svc"].merge(vectors, of=SUM, alpha=0.5)
    key = "block.1.weight"
    moved = once[key].double() - vectors.base[key].double()
    wanted = textbook(moved, vectors.deltas[key].double(), 0.5)
    found = twice[key].double() - vectors.base[key].double()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_base_does_not_round_what_is_decomposed() -> None:
    base = drawn(6, 5, dtype=torch.float32).bfloat16()
    deltas = 1e-3 * drawn(3, 6, 5, dtype=torch.float32)
    vectors = TaskVectors(TASKS, {"w": base}, {"w": deltas}, results=torch.float32)
    found = METHODS["svc"].merge(vectors)["w"].double() - base.double()
    wanted = textbook(0.3 * deltas.double().sum(0), deltas.double(), 0.1)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
