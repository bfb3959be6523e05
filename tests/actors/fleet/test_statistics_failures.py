"""Statistics while shards are killed: the call is made again, to the same bits."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import ray
import torch

from actors.artifacts.recipe import Recipe
from actors.artifacts.statistics_file import place
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.fleet.fleet import Fleet
from actors.pool.pool import open_pool
from tests.actors.fleet.sharded import plan_of
from tests.fusion import laws

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

NAMES = ("lines", "tones", "blobs")
FISHER = Recipe("fisher", {"examples": 150, "estimate": "exact"})


def test_a_shard_that_is_killed_while_gathering_changes_no_bit(tiny_pool, tmp_path):
    root = tiny_pool.root
    pool = open_pool(str(root / "base"), {name: str(root / "experts" / name) for name in NAMES})
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in NAMES}
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], tmp_path)
    identity = {name: name for name in (*NAMES, "pretrained")}
    torch.set_num_threads(1)  # as many as a shard has
    local = local_experts(pool, data, EmbeddingCache(tmp_path / "local" / "embeddings", identity))
    keys = local.statistics(FISHER)
    there = tmp_path / "fleet"
    there.mkdir()
    killed: list[int] = []

    def kill(shards):
        """End the first shard, then the second: each in the midst of an expert's statistics."""
        for key, shard in zip(keys[:2], shards, strict=True):
            pid = ray.get(shard.pid.remote())
            while not place(key, 3, there).exists():  # the next expert is begun
                time.sleep(0.005)
            time.sleep(0.2)
            assert not place(keys[keys.index(key) + 1], 3, there).exists()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with Fleet(pool, data, EmbeddingCache(there / "embeddings", identity), plan_of(1, 2)) as fleet:
        fleet.ready(120)
        thread = threading.Thread(target=kill, args=(fleet.shards,))
        thread.start()
        assert fleet.client.statistics(FISHER) == keys
        thread.join()
        assert len(set(killed)) == 2
        laws.assert_same_bits(fleet.client.merge(FISHER), local.merge(FISHER))
        place(keys[1], 0, there).unlink()  # as on a node that does not have it
        laws.assert_same_bits(fleet.client.merge(FISHER), local.merge(FISHER))
