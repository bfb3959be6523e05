"""Batches of rows for evaluation: consecutive or of near-equal length; results in row order."""

import itertools

import numpy as np
import torch

from actors.data.task_rows import batches, buckets, cut_rows


def test_rows_without_lengths_are_consecutive():
    cuts = cut_rows(7, None, size=3)
    assert list(cuts.parts) == list(batches(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert cuts.back is None
    named = cut_rows(3, None, torch.tensor([9, 4, 6]), 2)
    assert [part.tolist() for part in named.parts] == [[9, 4], [6]]


def test_rows_of_near_equal_length_share_a_batch():
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    parts = buckets(lengths, 16)
    assert sorted(np.concatenate(parts)) == list(range(100))
    assert [len(part) for part in parts] == [16] * 6 + [4]
    spans = [(lengths[part].min(), lengths[part].max()) for part in parts]
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))
    padded = sum(len(part) * lengths[part].max() for part in parts)
    assert padded < 1.15 * lengths.sum() < 100 * lengths.max() / 1.5


def test_results_come_back_in_the_order_of_the_rows():
    lengths = np.array([5, 2, 9, 2, 7])
    for at in (None, torch.tensor([40, 10, 30, 20, 50])):
        cuts = cut_rows(5, lengths, at, 2)
        names = torch.arange(5) if at is None else at
        assert cuts.joined(part[:, None] for part in cuts.parts)[:, 0].equal(names)
    assert [part.tolist() for part in cut_rows(5, lengths, size=2).parts] == [[1, 3], [0, 4], [2]]
