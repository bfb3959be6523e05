"""Costs that a sweep's plan cuts a chain of segments by, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from actors.cluster.segment_costs import MERGED, TENSOR
from actors.data.task_rows import BATCH
from actors.families.protocol import Segment
from sweeps.planning.prepared import costs_of


def link(numel: int, **fields: Any) -> Segment:
    names = {"weight": "a.weight", "tied": "a.weight", "bias": "a.bias"}
    return Segment(nn.Identity, (), names, numel, **fields)


def test_a_chain_that_does_not_state_its_work_has_no_costs():
    assert costs_of([link(10, work=5.0), link(10)], experts=2, rows=4) == ()


def test_training_counts_merges_and_tied_tensors_once():
    (found,) = costs_of([link(10, work=5.0)], experts=2, rows=4)
    assert found == pytest.approx(3 * 4 * 5 + 3 * 4 * 10 * MERGED + 2 * TENSOR)


def test_tables_are_merged_where_they_are_looked_up():
    (found,) = costs_of([link(10**9, work=0.0, lookups=7)], experts=2, rows=4)
    assert found == pytest.approx(3 * 4 * (4 * 7) * MERGED + 2 * TENSOR)


def test_factors_are_counted_by_their_elements():
    (found,) = costs_of([link(10**9, work=5.0)], experts=2, rows=4, factors=(400,))
    assert found == pytest.approx(3 * 4 * 5 + 3 * 100 * MERGED + 2 * TENSOR)


def test_models_that_are_only_evaluated_are_cut_by_work():
    (found,) = costs_of([link(10**9, work=5.0)], experts=2, rows=0)
    assert found == pytest.approx(BATCH * 5 + 2 * TENSOR / 3)
