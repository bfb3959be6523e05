"""What nodes have, asked on a real cluster of one node; several are in tests/cluster."""

import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from actors.cluster import nodes
from actors.cluster.nodes import Found, ask, check_same, code_hash, own_id, read_from, versions
from fusion.errors import InputError

ROOT = Path(__file__).parents[3]


def test_the_hash_of_the_code_is_that_of_its_files(tmp_path):
    for package in nodes.CODE:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert code_hash(tmp_path) == code_hash(ROOT) == versions()["code"]
    (tmp_path / "fusion" / "notes.txt").write_text("no code")
    assert code_hash(tmp_path) == code_hash(ROOT)
    with (tmp_path / "actors" / "fleet.py").open("a") as file:
        file.write("# changed\n")
    assert code_hash(tmp_path) != code_hash(ROOT)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_node_says_what_it_has(tmp_path):
    here, gone = str(ROOT / "pyproject.toml"), str(tmp_path / "gone")
    found = ask({own_id(): False}, [here, gone], patience=60)
    memory = found[own_id()].memory
    assert found == {own_id(): Found((), versions(), frozenset({here}), memory)}
    assert memory is not None
    assert 0 < memory < psutil.virtual_memory().total
    check_same(found)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("name", "what"), [("code", "the project's code"), ("torch", "torch"), ("ray", "ray")]
)
def test_another_version_on_a_node_is_one_line(name, what):
    other = replace(Found((), versions(), frozenset()), versions={**versions(), name: "0.1"})
    (node,) = [each for each in ray.nodes() if each["NodeID"] == own_id()]
    with pytest.raises(InputError) as error:
        check_same({own_id(): other})
    assert str(error.value) == (
        f"node {node['NodeManagerAddress']}: {what} is 0.1, the driver's is {versions()[name]}:"
        " results would differ; install the same there (`ray up` does), or start the sweep by"
        " sweeps/launch.py, which sends the code along"
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_node_that_is_gone_is_left_out():
    assert ask({"0" * 56: False}, patience=30) == {}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_weights_are_read_where_all_files_are_seen():
    found = {
        "some": Found((), {}, frozenset({"a"})),
        "all": Found((), {}, frozenset({"a", "b"})),
        "more": Found((), {}, frozenset({"a", "b", "c"})),
    }
    assert read_from(["some", "more", "all", "silent"], found, ["a", "b"]) == ["more", "all"]
    assert read_from(["some"], found, ["a", "b"]) == [own_id()]
