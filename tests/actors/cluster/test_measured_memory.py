"""Measured peaks decide how many replicas share a GPU."""

from dataclasses import replace

import pytest

from actors.cluster.measured_memory import keep_peak, peak_file, with_measured
from actors.cluster.partition import GPU_CONTEXT_BYTES
from actors.cluster.planner import Load, Node, Resources, plan

GB = 10**9
LOAD = Load(segments=(GB // 10,) * 4, experts=8)


def node(memory: int) -> Resources:
    return Resources((Node(16, 1, 400 * GB, memory, "n", "n"),))


def test_the_largest_peak_is_kept_a_load(tmp_path):
    assert with_measured(LOAD, tmp_path).measured == 0
    keep_peak(LOAD, 5 * GB, tmp_path)
    keep_peak(LOAD, 3 * GB, tmp_path)
    assert with_measured(LOAD, tmp_path).measured == 5 * GB
    # A measured load finds its own file; another load has none.
    assert with_measured(with_measured(LOAD, tmp_path), tmp_path).measured == 5 * GB
    assert with_measured(replace(LOAD, training_bytes=1), tmp_path).measured == 0
    peak_file(LOAD, tmp_path).write_text("{}")
    assert with_measured(LOAD, tmp_path).measured == 0


def test_measured_memory_replaces_the_estimate():
    estimate = plan(LOAD, node(80 * GB)).shard_bytes[0]
    assert estimate > 3.6 * GB  # base and eight task vectors in float32
    (measured,) = plan(replace(LOAD, measured=2 * GB), node(80 * GB)).shard_bytes
    assert measured == int(2 * GB * 1.1) + GPU_CONTEXT_BYTES


@pytest.mark.parametrize(
    ("memory", "gpus", "replicas"), [(80, 0.25, 4), (12, 1 / 2, 2), (5, 1.0, 1), (0, 1.0, 1)]
)
def test_auto_is_the_smallest_part_that_holds_a_replica(memory, gpus, replicas):
    found = plan(LOAD, node(memory * GB), gpus="auto")
    assert (found.gpus, found.replicas) == (pytest.approx(gpus), replicas)


def test_auto_shares_nothing_where_a_replica_is_sharded():
    found = plan(LOAD, Resources((Node(16, 4, 400 * GB, 80 * GB),)), gpus="auto", shards=2)
    assert (found.gpus, found.shards, found.replicas) == (1.0, 2, 2)
