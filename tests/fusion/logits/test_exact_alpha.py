"""The exact α against every place where anything can change, in rational numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.exact_alpha import ExactAlpha, Plateau, exact_alpha, exact_alpha_tasks, segment


def linear(seed: int, n: int = 40, classes: int = 5, whole: int = 0) -> tuple[Tensor, ...]:
    """A, B and labels; of small integers where `whole` is given: many exact ties."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        a, b = torch.randint(-whole, whole + 1, (2, n, classes), generator=generator).float()
    else:
        a, b = torch.randn(2, n, classes, generator=generator)
    return a, b, torch.randint(0, classes, (n,), generator=generator)


def right(a: Tensor, b: Tensor, labels: Tensor, alpha: float) -> int:
    """Correct samples at α, by argmax."""
    return int(((a.double() + alpha * b.double()).argmax(1) == labels).sum())


def count_at(a: list[Any], b: list[Any], labels: list[int], alpha: Fraction) -> int:
    """The same in rational numbers; the first of equal logits is the answer."""
    total = 0
    for row_a, row_b, y in zip(a, b, labels, strict=True):
        z = [Fraction(p) + alpha * Fraction(q) for p, q in zip(row_a, row_b, strict=True)]
        total += z.index(max(z)) == y
    return total


def brute_force(
    a: Tensor, b: Tensor, labels: Tensor, low: int, high: int
) -> tuple[int, list[Plateau]]:
    """Best count and where it is reached: every crossing of two logits, and between any two."""
    rows_a, rows_b = a.int().tolist(), b.int().tolist()
    crossings = {Fraction(low), Fraction(high)}
    for p, q in zip(rows_a, rows_b, strict=True):
        for i in range(len(p)):
            for k in range(i):
                if q[i] != q[k]:
                    crossings.add(Fraction(p[k] - p[i], q[i] - q[k]))
    points = sorted(x for x in crossings if low <= x <= high)
    places = [(points[0], points[0])]  # points, and the open intervals between them, in order
    for left, to in pairwise(points):
        places += [(left, to), (to, to)]
    counts = [count_at(rows_a, rows_b, labels.tolist(), (p + q) / 2) for p, q in places]
    best, found, run = max(counts), [], []
    for place, count in [*zip(places, counts, strict=True), (None, -1)]:
        if count == best:
            run.append(place)
        elif run:
            (p, q), (r, s) = run[0], run[-1]
            found.append(Plateau(float(p), float(s), low_in=p == q, high_in=r == s))
            run = []
    return best, found


@pytest.mark.parametrize("whole", [1, 2, 5])
@pytest.mark.parametrize("span", [(0, 1), (0, 3), (-2, 2), (1, 1)])
def test_equals_brute_force(whole: int, span: tuple[int, int]) -> None:
    for seed in range(12):
        a, b, labels = linear(seed, n=1 + seed, classes=2 + seed % 3, whole=whole)
        count, plateaus = brute_force(a, b, labels, *span)
        found = exact_alpha(a, b, labels, low=span[0], high=span[1])
        assert (found.count, found.n) == (count, 1 + seed)
        assert found.accuracy == count / (1 + seed)
        assert list(found.plateaus) == plateaus
        widest = max(plateaus, key=lambda p: p.width)
        assert (found.low, found.high) == (widest.low, widest.high)
        assert count_at(a.tolist(), b.tolist(), labels.tolist(), Fraction(found.middle)) == count


def test_no_grid_is_better() -> None:
    for seed in range(5):
        a, b, labels = linear(seed, n=300, classes=20)
        found = exact_alpha(a, b, labels, high=3.0)
        grid = [right(a, b, labels, 3 * i / 1000) for i in range(1001)]
        assert max(grid) <= found.count == right(a, b, labels, found.middle)
        assert found.low <= found.middle <= found.high
        inside = [3 * i / 1000 for i in range(1001) if found.low < 3 * i / 1000 < found.high]
        assert all(right(a, b, labels, alpha) == found.count for alpha in inside)


@pytest.mark.parametrize("whole", [1, 3])
def test_the_curve_is_the_accuracy_at_each_alpha(whole: int) -> None:
    at = [-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0]  # whole logits change at many of these
    for seed in range(12):
        a, b, labels = linear(seed, n=9, classes=3, whole=whole)
        found = exact_alpha(a, b, labels, low=-1.0, high=2.0, at=at)
        rows = a.tolist(), b.tolist(), labels.tolist()
        assert found.curve == tuple(count_at(*rows, Fraction(alpha)) / 9 for alpha in at)
        assert max(found.curve) <= found.accuracy
    assert exact_alpha(a, b, labels).curve == ()


@pytest.mark.parametrize("alpha", [1.5, -0.1, math.inf, math.nan])
def test_the_curve_ends_where_alpha_does(alpha: float) -> None:
    a, b, labels = linear(0, n=3, classes=3, whole=2)
    with pytest.raises(InputError, match=r"^at: .*; a finite number from 0\.0 to 1\.0 needed$"):
        exact_alpha(a, b, labels, at=[0.5, alpha])


def test_the_first_of_equal_logits_wins() -> None:
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])  # equal at ½
    first = exact_alpha(a, b, torch.tensor([0]))
    assert first.plateaus == (Plateau(0.5, 1.0, low_in=True, high_in=True),)
    second = exact_alpha(a, b, torch.tensor([1]))
    assert second.plateaus == (Plateau(0.0, 0.5, low_in=True, high_in=False),)
    for alpha, answer in ((0.49, 1), (0.5, 0), (0.51, 0)):
        assert int((a + alpha * b).argmax()) == answer


def test_a_plateau_of_one_point() -> None:
    # Class 0 wins in the first row up to ½, in the second from ½ on: both at ½ only, by the tie.
    a = torch.tensor([[0.0, -1.0], [0.0, 1.0]])
    b = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    found = exact_alpha(a, b, torch.tensor([0, 0]))
    assert found.plateaus == (Plateau(0.5, 0.5, low_in=True, high_in=True),)
    assert (found.accuracy, found.middle) == (1.0, 0.5)


def test_of_several_plateaus_the_widest_and_all_are_returned() -> None:
    a = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    b = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])  # right up to ¼; right from ¾
    labels = torch.tensor([0, 0])
    found = exact_alpha(a, b, labels, high=2.0)
    assert [(p.low, p.high) for p in found.plateaus] == [(0.0, 0.25), (0.75, 2.0)]
    assert (found.low, found.high, found.middle, found.count) == (0.75, 2.0, 1.375, 1)
    equal = exact_alpha(a, b, labels)
    assert [(p.low, p.high) for p in equal.plateaus] == [(0.0, 0.25), (0.75, 1.0)]
    assert (equal.low, equal.high) == (0.0, 0.25)  # equally wide: the first


def test_intervals_that_meet_are_one_plateau() -> None:
    a = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    b = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    found = exact_alpha(a, b, torch.tensor([0, 1]))  # one below ½, the other from ½ on
    assert found.plateaus == (Plateau(0.0, 1.0, low_in=True, high_in=True),)
    assert found.accuracy == 0.5


def test_an_infinite_plateau() -> None:
    a, b = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    found = exact_alpha(a, b, torch.tensor([0]), high=math.inf)
    assert found.plateaus == (Plateau(3.0, math.inf, low_in=True, high_in=False),)
    assert (found.low, found.high, found.middle) == (3.0, math.inf, 6.0)
    always = exact_alpha(a, b.flip(1), torch.tensor([1]), high=math.inf)
    assert (always.low, always.high, always.middle) == (0.0, math.inf, 1.0)


def test_all_wrong() -> None:
    a, b = torch.tensor([[0.0, 3.0]] * 4), torch.zeros(4, 2)
    for high in (1.0, math.inf):
        found = exact_alpha(a, b, torch.zeros(4, dtype=torch.int64), high=high)
        assert (found.accuracy, found.count, found.low, found.high) == (0.0, 0, 0.0, high)


def test_single_class_and_single_sample() -> None:
    found = exact_alpha(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([0]))
    assert (found.accuracy, found.count, found.n) == (1.0, 1, 1)
    assert (found.low, found.middle, found.high) == (0.0, 0.5, 1.0)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, labels = linear(0, n=500, classes=7)
    whole = exact_alpha(a, b, labels)
    monkeypatch.setattr("fusion.logits.exact_alpha.BUDGET", 7 * 8 * 33)
    assert exact_alpha(a, b, labels) == whole


def test_linear_classifiers_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(200, 16, generator=generator)
    heads = torch.randn(2, 10, 16, generator=generator)
    biases = torch.randn(2, 10, generator=generator)
    labels = torch.randint(0, 10, (200,), generator=generator)
    each = [u @ head.T + bias for head, bias in zip(heads, biases, strict=True)]
    a, b = segment(*each)
    for alpha in (0.0, 0.1, 0.5, 0.9, 1.0):
        head = (1 - alpha) * heads[0] + alpha * heads[1]
        merged = u @ head.T + (1 - alpha) * biases[0] + alpha * biases[1]
        torch.testing.assert_close((a + alpha * b).float(), merged, atol=1e-5, rtol=1e-5)
    assert torch.equal((a + b).float(), each[1])  # the ends are the ends
    best = exact_alpha(a, b, labels)
    grid = [right(a, b, labels, i / 500) for i in range(501)]
    assert max(grid) <= best.count == right(a, b, labels, best.middle)


def test_mean_over_tasks() -> None:
    tasks: Any = {name: linear(seed, n, c, whole=2) for seed, (name, n, c) in enumerate(
        [("few", 3, 2), ("some", 11, 4), ("many", 40, 3)])}  # fmt: skip

    def mean(alpha: float) -> float:
        return sum(right(*task, alpha) / len(task[2]) for task in tasks.values()) / 3

    found = exact_alpha_tasks(tasks, high=2.0)
    dense = [i / 5040 * 2 for i in range(5041)]  # ¼, ⅓, ½ … are among them
    assert found.accuracy == pytest.approx(max(map(mean, dense)), abs=1e-12)
    assert found.accuracy == pytest.approx(mean(found.middle), abs=1e-12)
    assert found.counts == {
        name: (right(*task, found.middle), len(task[2])) for name, task in tasks.items()
    }
    assert (found.count, found.n) == (sum(c for c, _ in found.counts.values()), 54)
    alone = exact_alpha_tasks({"many": tasks["many"]})
    single = exact_alpha(*tasks["many"])
    assert (alone.plateaus, alone.accuracy) == (single.plateaus, single.accuracy)


def test_tasks_of_equal_mean_and_other_counts_are_one_plateau() -> None:
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[4.0, 0.0]])  # class 0 from ¼ on
    tasks = {"late": (a, b, torch.tensor([0])), "early": (a, b, torch.tensor([1]))}
    found = exact_alpha_tasks(tasks)
    assert (found.low, found.high, found.accuracy) == (0.0, 1.0, 0.5)
    assert found.counts == {"late": (1, 1), "early": (0, 1)}  # at ½, not at 0


def test_equal_means_that_round_differently_are_equal() -> None:
    def task(always: int, late: int, early: int) -> Any:
        kinds = [[9.0, 1.0]] * always + [[0.0, 1.0]] * late
        kinds += [[-9.0, 1.0]] * (10 - always - late - early)
        a = torch.tensor(kinds + [[0.0, 1.0]] * early)
        labels = torch.tensor([0] * (10 - early) + [1] * early)
        return a, torch.tensor([[2.0, 0.0]] * 10), labels

    # Below ½ 1 and 2 of 10, from there 3 and 0: 0.1 + 0.2 > 0.3 in floats.
    found = exact_alpha_tasks({"a": task(1, 2, 0), "b": task(0, 0, 2)})
    assert found.plateaus == (Plateau(0.0, 1.0, low_in=True, high_in=True),)
    assert found.counts == {"a": (3, 10), "b": (0, 10)}


def bad(**changed: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, b, labels = linear(0, n=4, classes=3)
    fields = {"a": a, "b": b, "labels": labels} | changed
    return fields["a"], fields["b"], fields["labels"]


NAN = torch.tensor([[0.0] * 3] * 2 + [[0.0, float("nan"), 0.0]] + [[0.0] * 3])


@pytest.mark.parametrize(
    ("given", "span", "message"),
    [
        (bad(a=NAN), {}, "A: row 2 is not finite"),
        (bad(b=NAN * math.inf), {}, "B: row 0 is not finite"),
        (bad(b=torch.zeros(4, 2)), {}, "shapes [4, 3], [4, 2] and [4]; [N, C], [N, C] and [N]"),
        (bad(labels=torch.tensor([0])), {}, "shapes [4, 3], [4, 3] and [1]"),
        (bad(labels=torch.tensor([0, 1, 3, 0])), {}, "labels: 3; 0 to 2 allowed"),
        (bad(labels=torch.tensor([0, -1, 2, 0])), {}, "labels: -1; 0 to 2 allowed"),
        ((torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0)), {}, "a sample and a class"),
        (bad(), {"low": 2.0}, "low, high: 2.0, 1.0; a finite low, not above high, needed"),
        (bad(), {"low": -math.inf}, "low, high: -inf, 1.0; a finite low"),
        (bad(), {"high": float("nan")}, "low, high: 0.0, nan; a finite low"),
        (bad(), {"low": math.inf, "high": math.inf}, "low, high: inf, inf; a finite low"),
    ],
)
def test_wrong_input(given: Any, span: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        exact_alpha(*given, **span)


def test_a_faulty_task_is_named() -> None:
    with pytest.raises(InputError, match=re.escape("task 'b': A: row 2 is not finite")):
        exact_alpha_tasks({"a": bad(), "b": bad(a=NAN)})
    with pytest.raises(InputError, match="no tasks: no accuracy to maximise"):
        exact_alpha_tasks({})


def test_result_is_plain_numbers() -> None:
    found = exact_alpha(*linear(0))
    assert isinstance(found, ExactAlpha)
    kinds = [type(v) for v in (found.accuracy, found.low, found.middle, found.count, found.n)]
    assert kinds == [float, float, float, int, int]
