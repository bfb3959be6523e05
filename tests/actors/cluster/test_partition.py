"""The cut of a chain into shards, against every possible cut."""

import random
from itertools import combinations, pairwise

import pytest

from actors.cluster.partition import Load, balanced, blocks_of, cut
from fusion.errors import InputError


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


@pytest.mark.parametrize("blocks", [0, -1, 4])
def test_no_empty_block(blocks):
    with pytest.raises(InputError, match=f"cut: {blocks} blocks of 3 segments; 1 to 3 allowed"):
        cut([1, 2, 3], blocks)
