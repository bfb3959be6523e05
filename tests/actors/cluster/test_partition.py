"""The cut of a chain into shards, against every possible cut."""

import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from actors.cluster.partition import Load, balanced, blocks_of, cut, needs
from fusion.errors import InputError
from fusion.methods.learned.steps import STACKED


def largest(costs, blocks):
    return max(sum(costs[start:stop]) for start, stop in blocks)


def every(size, blocks):
    for stops in combinations(range(1, size), blocks - 1):
        yield tuple(zip((0, *stops), (*stops, size), strict=True))


def test_no_other_cut_has_a_lighter_heaviest_block():
    draw = random.Random(0)
    for _ in range(60):
        costs = [draw.randrange(20) for _ in range(draw.randrange(1, 9))]
        for blocks in range(1, len(costs) + 1):
            found = cut(costs, blocks)
            assert len(found) == blocks
            assert found[0][0] == 0
            assert found[-1][1] == len(costs)
            assert all(start < stop for start, stop in found)
            assert all(a[1] == b[0] for a, b in pairwise(found))
            best = min(largest(costs, other) for other in every(len(costs), blocks))
            assert largest(costs, found) == best


def test_light_blocks_are_even_too():
    assert cut([10, 1, 1, 1, 1], 3) == ((0, 1), (1, 3), (3, 5))


def test_no_other_cut_within_a_limit_has_a_lighter_heaviest_block():
    draw = random.Random(1)
    for _ in range(60):
        size = draw.randrange(2, 8)
        costs, sizes = ([draw.randrange(20) for _ in range(size)] for _ in range(2))
        blocks, limit = draw.randrange(1, size + 1), draw.randrange(1, 60)
        kept = [each for each in every(size, blocks) if largest(sizes, each) <= limit]
        if kept:
            found = cut(costs, blocks, sizes, limit)
            assert largest(sizes, found) <= limit
            assert largest(costs, found) == min(largest(costs, each) for each in kept)


def test_segments_that_state_their_work_are_cut_by_it_as_far_as_memory_allows():
    by_bytes = Load(segments=(4, 4, 4, 4, 4, 4), experts=1)
    by_work = Load(segments=(4, 4, 4, 4, 4, 4), experts=1, work=(8, 8, 1, 1, 1, 1))
    assert blocks_of(by_bytes, 2) == ((0, 3), (3, 6))
    assert list(balanced(by_bytes, 2)) == [by_bytes]
    assert blocks_of(by_work, 2) == ((0, 1), (1, 6))
    tried = [blocks_of(each, 2) for each in balanced(by_work, 2)]
    assert tried[0] == ((0, 1), (1, 6))
    assert ((0, 2), (2, 6)) in tried
    assert tried[-1] == ((0, 3), (3, 6))


def test_costs_decide_the_cut_and_work_the_memory():
    load = Load((4, 4, 4, 4), experts=1, work=(1, 1, 1, 1), training_bytes=400)
    dear = replace(load, costs=(1, 1, 1, 9))
    assert blocks_of(load, 2) == ((0, 2), (2, 4))
    assert blocks_of(dear, 2) == ((0, 3), (3, 4))
    assert [blocks_of(each, 2) for each in balanced(dear, 2)][-1] == ((0, 2), (2, 4))
    first, second = needs(dear, 2, "cpu")
    kept = (300 * 2, 100 * 1)  # the first of two shards keeps two micro-batches
    merged = (12 + 8 + 0, 4 + 8 + 0)  # the resident block, two of the largest segment
    assert first.host - second.host == kept[0] + merged[0] - kept[1] - merged[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stacked_tasks_are_planned_up_to_the_budget_of_the_device(device):
    def more(stacked, learned=0):
        given = (replace(load, stacked_bytes=size, learned_bytes=learned) for size in (0, stacked))
        before, after = (needs(each, 1, device)[0] for each in given)
        return after.host - before.host + after.device - before.device

    budget, load = STACKED[device], Load((4, 4), experts=1, training_bytes=1000)
    assert more(900) == 0  # one task's micro-batch is larger
    assert more(5000) == 4000
    assert more(5000, learned=70) == 4070
    assert more(3 * budget) == budget - 1000


def test_the_bottleneck_of_a_cut_by_cost_is_optimal_within_the_memory_limit():
    draw = random.Random(2)
    for _ in range(40):
        size = draw.randrange(2, 8)
        sizes = tuple(draw.randrange(1, 20) for _ in range(size))
        costs = tuple(float(draw.randrange(20)) for _ in range(size))
        shards, limit = draw.randrange(1, size + 1), draw.randrange(10, 80)
        load = Load(sizes, experts=1, work=(1.0,) * size, costs=costs, largest_block=limit)
        kept = [each for each in every(size, shards) if largest(sizes, each) <= limit]
        if kept:
            found = blocks_of(load, shards)
            assert largest(sizes, found) <= limit
            assert largest(costs, found) == min(largest(costs, each) for each in kept)


@pytest.mark.parametrize("blocks", [0, -1, 4])
def test_no_empty_block(blocks):
    with pytest.raises(InputError, match=f"cut: {blocks} blocks of 3 segments; 1 to 3 allowed"):
        cut([1, 2, 3], blocks)
