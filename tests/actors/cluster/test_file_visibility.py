"""Which nodes are given work on files: those that see them."""

import pytest

from actors.cluster import file_visibility
from actors.cluster.file_visibility import workplaces
from actors.cluster.nodes import Found


@pytest.fixture
def cluster(monkeypatch):
    """Three nodes with processors, one without; what each sees."""
    sees = {"a": {"x", "y"}, "b": {"x"}, "c": {"x", "y"}}
    asked = []

    def ask(nodes, files):
        asked.append(list(nodes))
        return {node: Found((), {}, frozenset(sees[node])) for node in nodes if node in sees}

    cpus = {"a": 4, "b": 4, "c": 4, "head": 0}
    nodes = [{"NodeID": n, "Alive": True, "Resources": {"CPU": cpu}} for n, cpu in cpus.items()]
    nodes.append({"NodeID": "gone", "Alive": False, "Resources": {}})
    monkeypatch.setattr(file_visibility.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(file_visibility, "ask", ask)
    return nodes, sees, asked


def test_all_nodes_with_processors_where_they_see_everything(cluster):
    _, _, asked = cluster
    assert workplaces(["x", "x"]) == {}
    assert asked == [["a", "b", "c"]]


def test_those_that_see_all_files(cluster):
    assert workplaces(["x", "y"]) == {"ray.io/node-id": "in(a,c)"}


def test_none_that_sees_them(cluster):
    assert workplaces(["z"]) is None


def test_a_node_that_does_not_answer_gets_no_work(cluster):
    _, sees, _ = cluster
    del sees["a"]
    assert workplaces(["x"]) == {"ray.io/node-id": "in(b,c)"}


def test_one_machine_is_not_asked(cluster, monkeypatch):
    nodes, _, asked = cluster
    monkeypatch.setattr(file_visibility.ray, "nodes", lambda: nodes[:1])
    assert workplaces(["z"]) == {}
    assert asked == []
