"""Uniform soups: each ingredient once, however often it is in the pool."""

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.soups.uniform_soup import checksums
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.laws import assert_same_bits, state_dict


def pool(*seeds: int, schema: str = "float32") -> TaskVectors:
    """Ingredients whose weights depend on their seed only."""
    experts = {f"i{at}": state_dict(schema, seed) for at, seed in enumerate(seeds)}
    return TaskVectors.from_state_dicts(state_dict(schema, 0), experts)


@pytest.mark.parametrize("copies", [2, 3, 4])
@pytest.mark.parametrize("schema", ["float32", "mixed"])
def test_a_soup_of_copies_is_the_copy_to_the_bit(copies: int, schema: str) -> None:
    one = METHODS["uniform_soup"].merge(pool(1, schema=schema))
    assert_same_bits(METHODS["uniform_soup"].merge(pool(*[1] * copies, schema=schema)), one)


def test_duplicates_count_once_unless_asked_for() -> None:
    vectors = pool(1, 2, 1)
    merge = METHODS["uniform_soup"].merge
    assert_same_bits(merge(vectors), METHODS["simple_average"].merge(pool(1, 2)))
    assert_same_bits(merge(vectors, distinct=False), METHODS["simple_average"].merge(vectors))


def test_named_ingredients_only() -> None:
    vectors = pool(1, 2, 3)
    found = METHODS["uniform_soup"].merge(vectors, ingredients=["i2", "i0"])
    for name, tensor in found.items():
        wanted = vectors.base[name].double() + vectors.deltas[name][[0, 2]].double().mean(0)
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-6)


def test_the_order_of_ingredients_moves_no_more_than_rounding() -> None:
    one, other = (METHODS["uniform_soup"].merge(pool(*s)) for s in ((1, 2, 3), (3, 1, 2)))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


def test_checksums_tell_the_smallest_difference_and_add_over_shards() -> None:
    vectors = pool(1, 1)
    assert len(set(checksums(vectors).tolist())) == 1
    parts = [checksums(vectors.restrict([name])) for name in vectors.deltas]
    assert sum(parts).tolist() == checksums(vectors).tolist()
    name = "block.1.weight"
    row = vectors.deltas[name][1]
    row[3, 4] = torch.nextafter(row[3, 4], row[3, 4] + 1)
    first, second = checksums(vectors).tolist()
    assert first != second
    row[3, 4], row[4, 3] = row[4, 3].item(), row[3, 4].item()  # two entries that change places
    assert checksums(vectors)[1] not in (first, second)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["i9"], "unknown ingredient 'i9'"), ([], "none given; at least one needed")],
)
def test_wrong_names_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        METHODS["uniform_soup"].merge(pool(1, 2), ingredients=names)
