"""Scales of tasks and over depth: equal ones are one number, and what they multiply."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.static.scales import scaled_shares
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from fusion.testing import refuses
from tests.fusion.draws import vectors_of
from tests.fusion.laws import TASKS, assert_same_bits, merge, toy

SCALED: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"density": 0.6},
    "dare": {"merge": "ties", "density": 0.7},
    "breadcrumbs": {"density": 0.5},
    "magmax": {},
    "tsv_m": {},
    "iso_c": {},
    "iso_cts": {"common_fraction": 0.5},
}
"""The methods that take all forms of `scale`."""

DEPTH = {"embed.weight": 0.0, "block.0.weight": 0.0, "block.0.bias": 0.0,
         "block.1.weight": 1.0, "logit_scale": 1.0}  # fmt: skip
"""Depth of the tensors of `toy()`."""


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("scale", [0.35, -0.5])
def test_equal_scales_of_tasks_are_one_scale(name: str, scale: float) -> None:
    params = SCALED[name]
    whole = merge(name, toy(), {**params, "scale": scale})
    each = merge(name, toy(), {**params, "scale": dict.fromkeys(TASKS, scale)})
    for key in whole:
        torch.testing.assert_close(each[key], whole[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCALED)
def test_a_flat_curve_is_one_scale_to_the_bit(name: str) -> None:
    params = SCALED[name]
    whole = merge(name, toy(), {**params, "scale": 0.35})
    curve = merge(name, toy(), {**params, "scale": {"start": 0.35, "end": 0.35}})
    assert_same_bits(curve, whole)


@pytest.mark.parametrize("name", SCALED)
def test_a_curve_multiplies_the_merged_task_vector(name: str) -> None:
    """Each tensor is that of a merge with the λ of its depth: no cut or election differs."""
    params = SCALED[name]
    found = merge(name, toy(), {**params, "scale": {"start": 0.25, "end": 0.75}})
    for key, depth in DEPTH.items():
        alone = merge(name, toy(), {**params, "scale": 0.25 + 0.5 * depth})
        assert torch.equal(found[key], alone[key])


@pytest.mark.parametrize("name", [n for n in SCALED if METHODS[n].scope == "tensor"])
def test_a_shard_has_the_depth_of_the_whole_model(name: str) -> None:
    """By itself block.1 would be a stack of one layer."""
    params = {**SCALED[name], "scale": {"start": 0.25, "end": 0.75}}
    part = merge(name, toy().restrict(["block.1.weight"]), params)
    assert torch.equal(part["block.1.weight"], merge(name, toy(), params)["block.1.weight"])


@pytest.mark.parametrize("name", [n for n in SCALED if n not in ("tsv_m", "iso_cts")])
def test_a_matrix_of_a_task_with_scale_zero_is_that_of_the_others(name: str) -> None:
    """Of the methods whose number of directions does not depend on the number of tasks."""
    scale = {task: 0.0 if task == "svhn" else 1.0 for task in TASKS}
    found = merge(name, toy(), {**SCALED[name], "scale": scale})
    others = tuple(task for task in TASKS if task != "svhn")
    wanted = merge(name, toy(tasks=others), {**SCALED[name], "scale": 1.0})
    for key in ("block.1.weight", "embed.weight"):
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)


def test_task_arithmetic_by_task_and_layer() -> None:
    """θ₀,k + Σ_t λ_t(k)·τ_t,k in float64."""
    vectors = toy()
    scale = {"mnist": {"start": 0.1, "end": 0.9}, "svhn": -0.3, "dtd": 0.5}
    found = merge("task_arithmetic", vectors, {"scale": scale})
    for key, depth in DEPTH.items():
        line = torch.tensor([0.1 + 0.8 * depth, -0.3, 0.5]).double()
        delta = torch.einsum("t,t...->...", line, vectors.deltas[key].double())
        torch.testing.assert_close(
            found[key].double(), vectors.base[key].double() + delta, rtol=1e-5, atol=1e-6
        )


def test_lines() -> None:
    """α + β·d in layers, α elsewhere; α is 1/T by default."""
    vectors = toy()
    shares = scaled_shares(vectors, {"preset": "lines", "beta": 0.6}, summed=True)
    found = {name: shares(name).scale for name in vectors.groups}
    assert found == pytest.approx(
        {name: 1 / 3 + 0.6 * (name == "block.1.weight") for name in vectors.groups}
    )
    wish = {"preset": "lines", "alpha": 0.25, "beta": 0.5}
    assert {scaled_shares(vectors, wish)(name).scale for name in vectors.groups} == {0.25, 0.75}


def test_ties_elects_with_scales_and_counts_tasks() -> None:
    """+3 of one task against −2 of two: −4 of them elects −, but not with λ = 1/2 of one."""
    vectors = vectors_of([3.0, 4.0], [-2.0, 2.0], [-2.0, 0.0])
    run = METHODS["ties"].merge
    assert run(vectors, density=1.0)["w"].tolist() == [-2.0, 3.0]
    scale = {"t0": 1.0, "t1": 0.5, "t2": 1.0}
    assert run(vectors, density=1.0, scale=scale)["w"].tolist() == [0.0, 2.5]  # 3 − 1 − 2 = 0
    scale["t1"] = 0.25
    assert run(vectors, density=1.0, scale=scale)["w"].tolist() == [3.0, 2.25]  # (4 + 0.5) / 2


def test_ties_divides_by_the_weights_that_agree() -> None:
    vectors = vectors_of([3.0, 4.0], [-2.0, 2.0], [-2.0, 0.0])
    run = METHODS["ties"].merge
    for factor in (1.0, 8.0):
        weights = [factor * 1.0, factor * 0.25, factor * 1.0]
        merged = run(vectors, density=1.0, weights=weights)["w"].tolist()
        assert merged == pytest.approx([3.0, 4.5 / 1.25])
    summed = run(vectors, density=1.0, weights=[1.0, 0.25, 1.0], merge="sum")["w"].tolist()
    assert summed == [3.0, 4.5]
    none = run(vectors, density=1.0, weights=[0.0, 0.0, 0.0])["w"].tolist()
    assert none == [0.0, 0.0]


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_ties_against_a_loop_in_float64(how: str) -> None:
    generator = torch.Generator().manual_seed(3)
    tau = torch.randn(4, 300, generator=generator)
    vectors = TaskVectors(tuple("abcd"), {"w": torch.zeros(300)}, {"w": tau})
    scale, weights = {"a": 0.5, "b": -1.0, "c": 2.0, "d": 0.1}, [1.0, 0.5, 0.0, 2.0]
    found = METHODS["ties"].merge(vectors, density=0.5, scale=scale, weights=weights, merge=how)
    wanted = []
    cuts = [sorted((abs(x) for x in row), reverse=True)[149] for row in tau.tolist()]
    for j in range(300):
        terms = [
            (weights[t] * lam * float(tau[t, j]), weights[t])
            for t, lam in enumerate(scale.values())
            if abs(float(tau[t, j])) >= cuts[t]
        ]
        side = math.copysign(1, mass) if (mass := math.fsum(x for x, _ in terms)) else 0
        agree = [(x, w) for x, w in terms if x * side > 0]
        total = math.fsum(x for x, _ in agree)
        if how == "mean" and agree:
            total /= math.fsum(w for _, w in agree)
        elif how == "max" and agree:
            total = side * max(abs(x) for x, _ in agree)
        wanted.append(total)
    torch.testing.assert_close(found["w"], torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_magmax_selects_among_scaled_task_vectors() -> None:
    vectors = vectors_of([3.0, -1.0], [2.0, -4.0])
    assert METHODS["magmax"].merge(vectors, scale={"t0": 0.5, "t1": 1.0})["w"].tolist() == [2, -4]
    assert METHODS["magmax"].merge(vectors, scale={"t0": 8.0, "t1": 1.0})["w"].tolist() == [24, -8]


def test_dare_averages_with_weights() -> None:
    vectors = vectors_of([4.0], [0.0])
    weights = {"t0": 3, "t1": 1}
    merged = METHODS["dare"].merge(vectors, density=1.0, merge="average", weights=weights)
    assert merged["w"].tolist() == [3.0]


def test_tasks_may_be_called_start_and_end() -> None:
    vectors = TaskVectors(("start", "end"), {"w": torch.zeros(1)}, {"w": torch.ones(2, 1)})
    merged = METHODS["task_arithmetic"].merge(vectors, scale={"start": 1.0, "end": 2.0})
    assert merged["w"].tolist() == [3.0]


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"mnist": 1.0, "svhn": 1.0}, "scale: task 'dtd': no number given"),
        ({"mnst": 1.0}, "scale: unknown task 'mnst'; did you mean 'mnist'?"),
        (dict.fromkeys(TASKS, "a"), "scale: task 'mnist': 'a'; a finite number needed"),
        ({"start": 0.1}, "scale: end: not given; a number needed"),
        ({"start": 0.1, "end": None}, "scale: end: None; a finite number needed"),
        ({"start": 0.1, "stop": 0.1}, "scale: unknown field 'stop'; "),
        ({"start": 0.1, "end": 1, "beta": 1}, "scale: unknown field 'beta'; "),
        ({"preset": "line", "beta": 1}, "scale: unknown preset 'line'; did you mean 'lines'?"),
        ({"preset": "lines", "alpha": 1}, "scale: beta: not given; a number needed"),
        ({**dict.fromkeys(TASKS, 1), "svhn": {"end": 1}}, "scale: task 'svhn': start: not given"),
    ],
)
def test_a_wrong_scale_is_refused_in_a_line(name: str, scale: Any, message: str) -> None:
    refuses(message, lambda: merge(name, toy(), {**SCALED[name], "scale": scale}))


@pytest.mark.parametrize("name", ["ties", "magmax", "tsv_m", "iso_c"])
def test_alpha_of_lines_has_no_default_where_no_sum_is_made(name: str) -> None:
    scale = {"preset": "lines", "beta": 0.5}
    refuses("scale: alpha: not given", lambda: merge(name, toy(), {"scale": scale}))


def test_a_curve_needs_layers() -> None:
    vectors = vectors_of([1.0])
    refuses("this model has none", lambda: METHODS["ties"].merge(vectors, scale={"end": 1}))


def test_a_mean_takes_no_negative_weight() -> None:
    run, vectors = METHODS["ties"].merge, vectors_of([1.0], [2.0])
    with pytest.raises(InputError, match=r"weights: task 't1': -1 for tensor 'w'; 0 or more"):
        run(vectors, weights=[1, -1])
    merged = run(vectors, weights=[1, -1], merge="sum", density=1)
    assert merged["w"].tolist() == [-2.0]
