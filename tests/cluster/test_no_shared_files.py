"""Two nodes that share no folder: replicas and trials run where nothing of the driver's is seen.

The second node's processes live in a mount namespace in which empty file systems lie over the
driver's cache, its results and the checkpoints.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cluster.tracking_server import free_port
from tests.sweeps.learning_pool import gated_spec, make_extractor
from tests.sweeps.program import comparison

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None,
        reason="mount namespaces need root and unshare",
    ),
]

RAY = (sys.executable, "-c", "from ray.scripts.scripts import main; main()")
CORES = len(os.sched_getaffinity(0))
HERE, THERE = "127.0.0.2", "127.0.0.3"
STORE = 200 * 2**20


def hidden(mounts: Sequence[str], command: Sequence[object]) -> list[str]:
    """A command in a mount namespace of its own, after some `mount` commands."""
    script = " && ".join([*mounts, 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)]


def over(folder: Path, size: str = "64m") -> str:
    """The command that hides a folder behind an empty one."""
    return f"mount -t tmpfs -o size={size} tmpfs '{folder}'"


def environment(**variables: object) -> dict[str, str]:
    """No token, whatever the user's home holds."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return known | ray | {name: str(value) for name, value in variables.items()}


def start(words: Sequence[object], **variables: object) -> subprocess.Popen:
    """A process in a session of its own, so that all it starts can be ended with it."""
    return subprocess.Popen(
        list(map(str, words)), env=environment(**variables), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen) -> None:
    """All of a session."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    with_kill(process)


def with_kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.communicate()


def common(host: str) -> list[str]:
    """What a node is started with; an address of its own, on loopback."""
    ports = [
        f"--{name}={free_port()}" for name in ("dashboard-port", "dashboard-agent-listen-port")
    ]
    store = f"--object-store-memory={STORE}"
    return ["--block", f"--node-ip-address={host}", "--disable-usage-stats", store, *ports]


class Driver:
    """A head without processors, the driver's place; its cache and its results."""

    def __init__(self, root: Path, address: str, pool: Path, ray: Path) -> None:
        self.root, self.address, self.pool, self.ray = root, address, pool, ray
        self.cache, self.outputs = root / "cache", root / "outputs"

    @contextmanager
    def node(self, cache: Path, mounts: Sequence[str] = ()) -> Iterator[None]:
        """A node that sees nothing of the driver's; `cache` is its own."""
        cache.mkdir(exist_ok=True)
        hide = [over(folder) for folder in (self.cache, self.outputs, self.pool)]
        words = [*RAY, "start", f"--address={self.address}", *common(THERE), f"--num-cpus={CORES}"]
        words += [f"--memory={4 * 2**30}"]
        variables = {"FUSION_SWEEPS_CACHE": cache, "RAY_TMPDIR": self.ray}
        process = start(hidden([*hide, *mounts], words), **variables)
        try:
            wait_for(self.address, process, nodes=2)
            yield
        finally:
            end(process)
            wait_for(self.address, None, nodes=1)

    def sweep(self, spec: Path, *words: str, mounts: Sequence[str] = ()) -> tuple[int, str, str]:
        """`sweeps run` on the cluster: (exit status, output, errors)."""
        command = [sys.executable, "-m", "sweeps", "run", spec, "--address", self.address, *words]
        command += ["--outputs", self.outputs]
        process = start(hidden(mounts, command), FUSION_SWEEPS_CACHE=self.cache)
        try:
            out, errors = process.communicate(timeout=600)
        finally:
            with_kill(process)
        return process.returncode, out, errors


def wait_for(address: str, process: subprocess.Popen | None, nodes: int) -> None:
    """Until the cluster has so many nodes."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40);"
        " print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + 240
    while True:
        asked = [sys.executable, "-c", code, address]
        done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False)
        if done.stdout.strip() == str(nodes):
            return
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(1)


@pytest.fixture(scope="module")
def spec(tiny_pool, tmp_path_factory) -> Path:
    """A sweep of static and learning methods, and one that starts from a gate."""
    root = tmp_path_factory.mktemp("spec")
    content = gated_spec(tiny_pool, str(make_extractor(tiny_pool.root / "resnet")))
    content["methods"] |= {
        "task_arithmetic": {"scale": {"grid": [0.2, 0.4]}},
        "ties": {"density": 0.3},
        "dawin": {},
        "ensemble": {},
    }
    content["methods"]["dawe"] |= {"scheduler": "asha", "learning_rate": {"grid": [0.01, 0.02]}}
    content["placement"] = {"replicas": 1}
    (root / "s.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root / "s.yaml"


@pytest.fixture(scope="module")
def alone(spec) -> Path:
    """The results of the same sweep on one machine, with a cache of its own."""
    words = [sys.executable, "-m", "sweeps", "run", spec, "--outputs", spec.parent / "alone"]
    process = start(words, FUSION_SWEEPS_CACHE=spec.parent / "cache")
    try:
        out, errors = process.communicate(timeout=600)
    finally:
        with_kill(process)
    assert process.returncode == 0, out + errors
    return spec.parent / "alone"


@pytest.fixture(scope="module")
def driver(tiny_pool, tmp_path_factory) -> Iterator[Driver]:
    """A cluster's head, on which nothing but the driver and what is pinned beside it fits."""
    root, port = tmp_path_factory.mktemp("driver"), free_port()
    ray = Path(f"/tmp/ray-{os.getpid()}-{port}")  # short: sockets lie in it
    words = [*RAY, "start", "--head", f"--port={port}", *common(HERE), "--num-cpus=0"]
    words += ["--include-dashboard=false", f"--memory={100 * 2**20}"]  # no room for a trial
    made = Driver(root, f"{HERE}:{port}", tiny_pool.root, ray)
    for folder in (made.cache, made.outputs):
        folder.mkdir()
    head = start(words, FUSION_SWEEPS_CACHE=made.cache, RAY_TMPDIR=ray)
    try:
        wait_for(made.address, head, nodes=1)
        yield made
    finally:
        end(head)
        shutil.rmtree(ray, ignore_errors=True)


def test_the_comparison_is_that_of_one_machine(driver, spec, alone, tmp_path):
    with driver.node(tmp_path / "cache"):
        status, out, errors = driver.sweep(spec)
    assert status == 0, out + errors
    assert comparison(driver.outputs / "learning") == comparison(alone / "learning")
    # It was that node that computed, and it had to be given what it read.
    for kind in ("pixels", "heads", "features", "embeddings"):
        assert [each for each in (tmp_path / "cache" / kind).iterdir() if each.suffix], kind
    assert not list((driver.cache / "embeddings").glob("*"))
    learned = {path.suffix for path in (driver.outputs / "learning/learned").iterdir()}
    assert learned == {".safetensors"}  # from trials of the other node; no state is left
    assert list((driver.outputs / "learning/tune").rglob("events.out.tfevents.*"))


def test_a_gate_of_the_driver_serves_the_other_node(driver, spec, alone, tmp_path):
    """Of the sweep before: the same gate measures the same from a file that only one node has."""
    rows = {row["method"]: row for row in comparison(alone / "learning")["rows"]}
    content = yaml.safe_load(spec.read_text())
    gate = driver.outputs / "learning/recipes/dawe.safetensors"
    given = {"extractor": content["methods"]["dawe"]["extractor"], "gate": str(gate), "steps": 0}
    content |= {"name": "moved", "methods": {"dawe": given}}
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with driver.node(tmp_path / "cache"):
        status, out, errors = driver.sweep(tmp_path / "moved.yaml")
    assert status == 0, out + errors
    moved = {row["method"]: row for row in comparison(driver.outputs / "moved")["rows"]}
    assert moved["dawe"]["test"] == rows["dawe"]["test"]


def test_a_node_without_room_is_one_line(driver, spec, tmp_path):
    small = over(tmp_path / "cache", "1m")
    with driver.node(tmp_path / "cache", [small]):
        status, out, errors = driver.sweep(spec, "--fresh")
    assert status == 2, out + errors
    assert errors.count("\n") == 1, errors
    assert f"{tmp_path}/cache/" in errors
    assert f"node {THERE}: " in errors
    assert "No space left on device" in errors
    assert "FUSION_SWEEPS_CACHE" in errors


def test_results_that_cannot_be_written_are_one_line(driver, spec, tmp_path):
    folder = driver.outputs
    mounts = [f"mount --bind '{folder}' '{folder}'", f"mount -o remount,bind,ro '{folder}'"]
    status, out, errors = driver.sweep(spec, mounts=mounts)
    assert status == 2, out + errors
    assert errors.count("\n") == 1, errors
    assert "cannot be written: Read-only file system" in errors
