"""Nodes that differ: which of them a shard may go to."""

import pytest

from actors.cluster.planner import Load, Node, Resources, plan
from fusion.errors import InputError

GB = 10**9
LOAD = Load(segments=(GB // 2,) * 6, experts=7)  # 24 GB of weights on a GPU, and work


def nodes(*sizes: int, labels: tuple[dict[str, str], ...] = ()) -> Resources:
    marks = labels or ({},) * len(sizes)
    return Resources(
        tuple(
            Node(8, 2, 400 * GB, size * GB, f"n{i}", f"id{i}", mark)
            for i, (size, mark) in enumerate(zip(sizes, marks, strict=True))
        )
    )


def test_equal_nodes_need_no_selector():
    found = plan(LOAD, nodes(80, 80))
    assert (found.replicas, found.shards, found.places) == (4, 1, ())
    assert found.nodes == (("n0", 2), ("n1", 2))


def test_a_shard_goes_only_where_it_fits():
    found = plan(LOAD, nodes(80, 16, 80), shards=1)
    assert found.places == (("id0", "id2"),)
    assert found.replicas == 4
    assert found.nodes == (("n0", 2), ("n2", 2))


def test_uneven_shards_have_places_of_their_own():
    load = Load(segments=(2 * GB, GB // 4), experts=7)
    found = plan(load, nodes(40, 12), shards=2, replicas=1)
    assert found.places == (("id0",), ("id0", "id1"))


def test_nodes_without_gpus_are_no_places():
    resources = Resources((*nodes(80).nodes, Node(64, 0, 400 * GB, 0, "cpu", "cpu")))
    assert plan(LOAD, resources).places == ()
    assert plan(LOAD, resources).replicas == 2


def test_labels_choose_the_nodes():
    zones = ({"zone": "a"}, {"zone": "b"}, {"zone": "a"})
    found = plan(LOAD, nodes(80, 80, 80, labels=zones), labels={"zone": "a"})
    assert (found.replicas, found.labels, found.places) == (4, {"zone": "a"}, ())
    with pytest.raises(InputError) as error:
        plan(LOAD, nodes(80, 80, 80, labels=zones), labels={"zone": "c"})
    assert str(error.value) == (
        "placement.labels: {'zone': 'c'}: no node carries them; there: zone=a, zone=b"
    )
