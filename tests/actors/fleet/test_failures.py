"""What dies comes back, or is named in one line; nothing stays behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from safetensors.torch import load_file, save_file

from actors.artifacts.recipe import Recipe
from actors.experts.requests import Evaluate
from actors.fleet.errors import Unplaced
from actors.fleet.fleet import Fleet
from actors.pool.pool import open_pool
from fusion.errors import InputError
from tests.actors.fleet.sharded import alive, ours, plan_of, standing, wait_until
from tests.actors.laws.parts import recipes
from tests.fusion import laws
from tests.refusals import one_line

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def undisturbed(parts):
    return parts.train(parts.local())


@pytest.fixture(scope="module")
def fleet(parts, ray_cluster):
    """Of two shards; the tests kill its processes."""
    with Fleet(*parts.args, plan_of(1, 2)) as started:
        started.ready(120)
        yield started


class Killer:
    """Ends a process of a fleet soon after a step has begun: while its calls are in flight."""

    def __init__(self, pick, steps):
        self.pick, self.steps, self.killed, self.threads = pick, steps, [], []

    def __call__(self, step):
        if step in self.steps:
            pid = ray.get(self.pick().pid.remote())
            self.killed.append(pid)
            thread = threading.Timer(random.Random(step).uniform(0, 0.05), os.kill, (pid, 9))
            thread.start()
            self.threads.append(thread)


def disturbed(parts, fleet, pick, steps, count=12):
    """The gate of a training in which a process is killed at each of these steps."""
    killer = Killer(pick, steps)
    found = parts.train(fleet.client, steps=count, between=killer)
    for thread in killer.threads:
        thread.join()
    wait_until(lambda: not any(map(alive, killer.killed)))
    assert len(set(killer.killed)) == len(steps)
    return found


@pytest.mark.slow
def test_killed_shards_do_not_change_a_bit_of_a_training(fleet, parts, undisturbed):
    drawn = random.Random(1)
    found = disturbed(parts, fleet, lambda: drawn.choice(fleet.shards), {4, 8})
    laws.assert_same_bits(found, undisturbed)


@pytest.mark.slow
def test_ten_killed_shards_do_not_change_a_bit_of_a_training(fleet, parts):
    drawn = random.Random(2)
    found = disturbed(parts, fleet, lambda: drawn.choice(fleet.shards), set(range(1, 21, 2)), 24)
    laws.assert_same_bits(found, parts.train(parts.local(), steps=24))


def test_a_killed_conductor_does_not_change_a_bit_of_a_training(fleet, parts, undisturbed):
    found = disturbed(parts, fleet, lambda: fleet.replicas[0], {5})
    laws.assert_same_bits(found, undisturbed)


def test_what_a_shard_refuses_arrives_as_itself(fleet):
    with pytest.raises(InputError, match=r"^ties: density: 2; float in \[0, 1\] allowed"):
        fleet.client.evaluate(Recipe("ties", {"density": 2}), "select")
    with pytest.raises(InputError, match=r"^adamerging: nothing learned"):
        fleet.client.evaluate(Recipe("adamerging"), "select")


class OwnFault(Exception):
    """Of whoever uses a fleet."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", [KeyboardInterrupt, None, OwnFault])
def test_nothing_of_a_closed_fleet_stays(fault, parts):
    before, groups = ours("Replica", "ShardActor", "Dispatcher", "read experts"), standing()
    try:
        with Fleet(*parts.args, plan_of(1, 2)) as short:
            short.ready(120)
            pids = ray.get([actor.pid.remote() for actor in (*short.shards, *short.replicas)])
            short.client.submit(Evaluate(recipes(parts.pool)["dawe"], "report"))  # in flight
            if fault is not None:
                raise fault
    except (OwnFault, KeyboardInterrupt):
        pass
    wait_until(lambda: not any(map(alive, pids)))
    names = ("Replica", "ShardActor", "Dispatcher", "read experts")
    wait_until(lambda: len(ours(*names)) <= len(before))
    wait_until(lambda: standing() == groups)


def test_a_fleet_without_room_says_what_is_missing_and_leaves_nothing(parts):
    before, groups = len(ours("Replica", "ShardActor", "Dispatcher")), standing()
    start = time.monotonic()
    with (
        pytest.raises(
            Unplaced,
            match=r"^fleet: no place for [34] of 4 replicas: (9|12) shards need 1 CPU each;"
            r" the cluster has 4 CPU, 0 GPU in all, \d CPU, 0 GPU free; waited 5 s$",
        ),
        Fleet(*parts.args, plan_of(4, 3)) as doomed,
    ):
        doomed.ready(timeout=5)
    assert time.monotonic() - start < 30
    wait_until(lambda: standing() == groups)
    wait_until(lambda: len(ours("Replica", "ShardActor", "Dispatcher")) <= before)


def pool_with(tiny_pool, tmp_path, change):
    """The tiny pool, one expert's weights changed."""
    bad = tmp_path / "bad"
    shutil.copytree(tiny_pool.root / "experts" / "tones", bad)
    state = load_file(bad / "model.safetensors")
    change(state)
    save_file(state, bad / "model.safetensors")
    experts = {name: str(tiny_pool.root / "experts" / name) for name in ("lines", "blobs")}
    pool = open_pool(str(tiny_pool.root / "base"), {**experts, "tones": str(bad)})
    return pool, bad


def refused(parts, pool) -> str:
    """The line in which a fleet of this pool ends."""
    _, data, embeddings = parts.args
    with one_line() as lines, Fleet(pool, data, embeddings, plan_of(1, 2)) as doomed:
        doomed.ready(60)
    return lines[0]


@pytest.mark.slow  # test_fleet has weights with NaN for a whole model
def test_nan_in_one_block_is_named(parts, tiny_pool, tmp_path):
    def spoil(state):
        key = next(name for name in state if name.endswith("layers.1.mlp.fc1.weight"))
        state[key][3, 5] = float("nan")

    text = refused(parts, pool_with(tiny_pool, tmp_path, spoil)[0])
    assert "pool.experts.tones" in text
    assert str(tmp_path / "bad" / "model.safetensors") in text
    assert "layers.1.mlp.fc1.weight" in text


@pytest.mark.slow
def test_an_expert_missing_on_a_node_is_named(parts, tiny_pool, tmp_path):
    pool, folder = pool_with(tiny_pool, tmp_path, lambda state: None)
    shutil.rmtree(folder)
    text = refused(parts, pool)
    assert text.startswith(f"pool.experts.tones: {folder}/model.safetensors: missing on node 127.")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_loses_nodes(tiny_pool, tmp_path):
    """Its own Ray of several nodes, in a process of its own."""
    script = Path(__file__).with_name("cluster_script.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_pool.root), str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "all well"


def test_a_killed_desk_comes_back(fleet, parts, undisturbed):
    """It is the way to all replicas; where it dies, with a node say, its calls are made again."""
    (pid,) = [
        process
        for process in ray.get([fleet.dispatcher.__ray_call__.remote(lambda self: os.getpid())])
    ]
    timer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    timer.start()
    laws.assert_same_bits(parts.train(fleet.client), undisturbed)
    timer.join()
    wait_until(lambda: not alive(pid))
    fleet.client.evaluate(Recipe("pretrained"), "select")
