"""What trials keep reaches the sweep's folder, from near and far."""

import json
import subprocess
import sys

import pytest
import ray

from fusion.errors import InputError
from sweeps.trials.artifact_store import LocalStore, RemoteStore, artifact_store


def test_it_imports_no_torch():
    """A process more on the driver's node: it must be a small one."""
    heavy = ("torch", "mlflow", "fusion.registry")
    code = (
        "import json, sys, sweeps.trials.artifact_store;"
        f" print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_on_one_machine_it_is_the_folder(tmp_path):
    kept = artifact_store(tmp_path / "learned", everywhere=False)
    assert kept == LocalStore(tmp_path / "learned")
    assert kept.get("a.state") is None
    kept.put("a.state", b"one")
    kept.put("a.state", b"two")
    assert kept.get("a.state") == b"two"
    assert [path.name for path in (tmp_path / "learned").iterdir()] == ["a.state"]


@pytest.fixture
def sent(ray_cluster, tmp_path) -> RemoteStore:
    """A keep as another node's trial holds it."""
    kept = artifact_store(tmp_path / "learned", everywhere=True)
    assert isinstance(kept, RemoteStore)
    yield RemoteStore(LocalStore(tmp_path / "not here"), "another node", kept.actor)
    ray.kill(kept.actor)


@pytest.mark.ray
def test_from_afar_it_is_written_when_put_returns(sent, tmp_path):
    assert sent.get("a.state") is None
    sent.put("a.state", b"\0\1" * 100_000)
    assert (tmp_path / "learned/a.state").read_bytes() == b"\0\1" * 100_000
    assert sent.get("a.state") == b"\0\1" * 100_000
    assert not (tmp_path / "not here").exists()


@pytest.mark.ray
def test_its_process_may_die(sent, tmp_path):
    sent.put("a.state", b"before")
    ray.kill(sent.actor, no_restart=False)
    sent.put("b.state", b"after")
    assert sent.get("a.state") == b"before"


@pytest.mark.ray
def test_the_drivers_own_node_writes_itself(ray_cluster, tmp_path):
    kept = artifact_store(tmp_path / "learned", everywhere=True)
    alone = RemoteStore(kept.folder, kept.node, actor=None)
    alone.put("a.state", b"one")
    assert alone.get("a.state") == b"one"
    ray.kill(kept.actor)


@pytest.mark.ray
def test_a_folder_that_cannot_be_written_is_one_line(ray_cluster, tmp_path):
    kept = artifact_store(tmp_path / "learned", everywhere=True)
    (tmp_path / "learned").symlink_to("/sys")
    for each in (kept, RemoteStore(kept.folder, "another node", kept.actor)):
        with pytest.raises(InputError, match=r"learned/a\.state: cannot be written: \w+") as caught:
            each.put("a.state", b"one")
        assert "\n" not in str(caught.value)
    ray.kill(kept.actor)
