"""DARE: what the drop depends on, its statistics, and that it is the plain method after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.sparse.dare import Drop, dare, dare_survey, mask_key
from fusion.methods.sparse.ties import ties
from fusion.methods.static.average import simple_average
from fusion.methods.static.task_arithmetic import task_arithmetic
from fusion.task_vectors import elementwise
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import published
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy

PLAIN: dict[str, Any] = {
    "task_arithmetic": task_arithmetic,
    "average": simple_average,
    "ties": ties,
}


def dropped(
    vectors: TaskVectors, density: float, rescale: bool, only_matrices: bool, seed: int
) -> TaskVectors:
    return Drop(vectors.tasks, density, rescale, only_matrices, seed).of(vectors)


def keep_mask(
    shape: tuple[int, ...], density: float, seed: int, task: str, name: str
) -> torch.Tensor:
    """A mask by the published hash, in Python's whole numbers: entry i by half a word."""
    size = math.prod(shape)
    words = published(mask_key(seed, task, name), (size + 1) // 2)
    halves = [part for word in words for part in (word & 0xFFFFFFFF, word >> 32)][:size]
    signed = [half - 2**32 if half >= 2**31 else half for half in halves]
    return torch.tensor([(half + 2**31) / 2**32 < density for half in signed]).view(shape)


def big(tasks: tuple[str, ...] = TASKS) -> TaskVectors:
    """Task vectors of ones, 20,000 entries a task."""
    shape = (len(tasks), 100, 200)
    return TaskVectors(tasks, {"w": torch.zeros(100, 200)}, {"w": torch.ones(shape)})


@pytest.mark.parametrize("merge", PLAIN)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_density_zero_and_one(merge: Any, schema: str) -> None:
    vectors = toy(schema)
    assert_same_bits(dare(vectors, density=0.0, merge=merge), vectors.base)
    assert_same_bits(dare(vectors, density=1.0, merge=merge), PLAIN[merge](vectors))
    assert dropped(vectors, 1.0, True, False, 0) is vectors


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_entries_are_kept_whole_and_rescaled(density: float) -> None:
    kept = dropped(big(), density, True, False, 0).deltas["w"]
    assert sorted(set(kept.unique().tolist())) == pytest.approx([0, 1 / density])
    share = (kept != 0).double().mean(dim=(1, 2))
    spread = 4 * (density * (1 - density) / 20_000) ** 0.5
    assert bool(((share - density).abs() < spread).all())
    assert float(kept.double().mean()) == pytest.approx(1, abs=spread / density)
    plain = dropped(big(), density, False, False, 0).deltas["w"]
    assert torch.equal(plain, (kept != 0).float())


def test_drops_differ_by_seed_task_and_tensor() -> None:
    shape = (4000,)
    masks = [
        keep_mask(shape, 0.5, seed, task, name)
        for seed in (0, 1, -1)
        for task in ("a", "b")
        for name in ("u", "w")
    ]
    for at, mask in enumerate(masks):
        for other in masks[:at]:  # independent: half of the entries agree
            assert 1800 < int((mask == other).sum()) < 2200
    # A word is not cut elsewhere: (task "a", tensor "bw") is not (task "ab", tensor "w").
    assert not torch.equal(keep_mask(shape, 0.5, 0, "a", "bw"), keep_mask(shape, 0.5, 0, "ab", "w"))


def test_a_mask_is_known_beforehand() -> None:
    # Results of finished trials rest on it.
    name, wanted = "embed.weight", [True, True, True, False, True, True, True, True]
    assert mask_key(0, "mnist", name) == 16420541377971100568
    assert keep_mask((8,), 0.5, 0, "mnist", name).tolist() == wanted
    ones = TaskVectors(("mnist",), {name: torch.zeros(8)}, {name: torch.ones(1, 8)})
    assert dropped(ones, 0.5, False, False, 0).deltas[name][0].bool().tolist() == wanted


def test_kept_entries_of_a_higher_density_include_those_of_a_lower() -> None:
    low, high = (keep_mask((1000,), density, 7, "a", "w") for density in (0.2, 0.6))
    assert bool((high | ~low).all())


def test_the_drop_is_the_same_in_any_order_and_company() -> None:
    whole = dropped(toy(), 0.5, True, False, 3).deltas
    flipped = dropped(toy(tasks=TASKS[::-1]), 0.5, True, False, 3).deltas
    alone = dropped(toy(tasks=TASKS[1:2]), 0.5, True, False, 3).deltas
    shard = dropped(toy().restrict(["block.1.weight"]), 0.5, True, False, 3).deltas
    for name in whole:
        assert torch.equal(whole[name].flip(0), flipped[name])
        assert torch.equal(whole[name][1:2], alone[name])
    assert torch.equal(shard["block.1.weight"], whole["block.1.weight"])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(dropped(big(), 0.5, True, False, 3).deltas["w"], big_dropped())
    finally:
        torch.set_num_threads(threads)


def big_dropped() -> torch.Tensor:
    masks = [keep_mask((100, 200), 0.5, 3, task, "w") for task in TASKS]
    return torch.stack(masks).float() * 2


@pytest.mark.parametrize("merge", PLAIN)
def test_it_is_the_plain_method_of_what_is_left(merge: Any) -> None:
    vectors = toy("mixed")
    deltas = {
        name: torch.stack(
            [
                row * keep_mask(tuple(row.shape), 0.4, 5, task, name) * (1 / 0.4)
                for task, row in zip(vectors.tasks, delta, strict=True)
            ]
        )
        for name, delta in vectors.deltas.items()
    }
    left = TaskVectors(vectors.tasks, vectors.base, deltas)
    assert_same_bits(dare(vectors, density=0.4, seed=5, merge=merge), PLAIN[merge](left))


@pytest.mark.parametrize("merge", ["task_arithmetic", "average"])
def test_the_size_of_a_chunk_is_of_no_matter(merge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dare(big(), density=0.3, seed=4, merge=merge)
    for size in (2, 1000, 30_000):
        monkeypatch.setattr(elementwise, "CHANGED", size)
        assert_same_bits(dare(big(), density=0.3, seed=4, merge=merge), whole)


def test_parameters_reach_the_method() -> None:
    vectors = toy()
    left = dropped(vectors, 0.5, True, False, 0)
    assert_same_bits(dare(vectors, scale=0.7), task_arithmetic(left, scale=0.7))
    trimmed = dare(vectors, merge="ties", scale=0.7, trim_density=0.6)
    assert_same_bits(trimmed, ties(left, density=0.6, scale=0.7))
    quirk = dare(vectors, merge="ties", compat="fusionbench")
    assert_same_bits(quirk, ties(left, density=0.2, scale=0.5, merge="sum", compat="fusionbench"))
    with pytest.raises(InputError, match=r"dare: scale: 0\.7; merge 'average' takes none"):
        dare(vectors, merge="average", scale=0.7)


def test_the_cut_of_ties_is_that_of_what_is_left() -> None:
    vectors = toy("mixed")
    options: dict[str, Any] = {"density": 0.6, "merge": "ties", "seed": 2}
    names = list(vectors.base)
    shards = [vectors.restrict(names[:4]), vectors.restrict(names[4:])]
    cut = run_surveys([dare_survey(shard, **options) for shard in shards])
    assert cut == run_surveys([dare_survey(vectors, **options)])
    assert cut is not None
    assert run_surveys([dare_survey(vectors)]) is None


def test_only_matrices() -> None:
    vectors = toy("mixed")
    left = dropped(vectors, 0.5, True, True, 0).deltas
    for name, delta in vectors.deltas.items():
        spared = vectors.base[name].ndim != 2
        assert torch.equal(left[name], delta) == (spared or not delta.numel()), name
