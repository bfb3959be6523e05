"""Rules of single entries: chunks, layouts, exact sums."""

from __future__ import annotations

import math

import torch

from fusion.task_vectors.elementwise import combine_tensor, totals
from fusion.task_vectors.threads import SERIAL


def test_chunks_see_every_entry_once_and_the_base_comes_last() -> None:
    size = 2 * SERIAL + 17
    base, deltas = torch.arange(size, dtype=torch.float64), torch.randn(3, size).double()
    out = torch.empty(size, dtype=torch.float64)
    combine_tensor(out, base, deltas, lambda rows: rows.amax(0), scale=0.5)
    assert torch.equal(out, base + 0.5 * deltas.amax(0))


def test_what_is_not_contiguous_is_written_all_the_same() -> None:
    out, deltas = torch.empty(4, 5).T, torch.randn(2, 5, 4)
    combine_tensor(out, torch.ones(5, 4), deltas, lambda rows: rows.sum(0))
    torch.testing.assert_close(out, 1 + deltas.sum(0))


def test_what_combine_is_given_is_free_to_be_overwritten() -> None:
    deltas = torch.ones(2, 3)
    combine_tensor(torch.empty(3), torch.zeros(3), deltas, lambda rows: rows.zero_().sum(0))
    assert torch.equal(deltas, torch.ones(2, 3))


def test_totals_are_exact_sums_of_chunks_whatever_the_threads() -> None:
    deltas = torch.randn(2, 3 * SERIAL + 5)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(totals(deltas, lambda rows: rows.double().sum(1)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    wanted = [math.fsum(row) for row in deltas.tolist()]
    torch.testing.assert_close(found[0], torch.tensor(wanted, dtype=torch.float64))
    assert totals(torch.zeros(2, 0), lambda rows: rows.sum(1)).tolist() == [0.0, 0.0]
