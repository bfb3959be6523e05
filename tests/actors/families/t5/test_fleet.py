"""A T5 on real processes, whole and in shards: the bits of one process, greedy decoding included.

Answers of these tests are found after many written tokens: all tokens but theirs are blank.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from actors.artifacts.head_file import read_head, write_answer_head
from actors.artifacts.recipe import Recipe
from actors.cluster.planner import Plan
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.metrics import EXACT
from actors.experts.prepare_data import prepare_data
from actors.experts.requests import Evaluate
from actors.fleet.fleet import Fleet
from actors.fleet.transport import fetched
from actors.pool.pool import open_pool
from tests.actors.families.t5.models import CLASSES, LAST, V, write_pool
from tests.actors.laws.cases import Caller, assert_same, evaluated, merged, stepped
from tests.actors.laws.parts import Parts, gate_file, random_gate, with_features

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(900),
]

WHOLE, CUT = ((0, LAST),), ((0, 3), (3, LAST))
"""Shards of a replica: one; two, cut where the encoder ends."""
END = 1
MERGE = Recipe("task_arithmetic", {"scale": 0.3})
LEARNED = {
    "adamerging": stepped("adamerging", grouping="layer"),
    "dawe": stepped("dawe", grouping="layer", batch_mean=False),
}
"""Method -> what is observed of it: losses, gradients' moments, and logits of what is learned."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = write_pool(tmp_path_factory.mktemp("t5_fleet"))
    cache = tmp_path_factory.mktemp("t5_fleet_cache")
    pool = open_pool(str(root / "base"), {task: str(root / task) for task in CLASSES})
    tasks = {t: open_task(TaskSource(t, str(root / "data" / t)), "text") for t in CLASSES}
    data = prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), cache)
    found = {}
    for name, task in with_features(data, cache).items():
        answers, head = read_head(task.head).long(), root / f"{name}.safetensors"
        write_answer_head(head, answers, sorted({*range(V)} - {END, *answers.flatten().tolist()}))
        found[name] = replace(task, head=head)
    return Parts(pool, found, cache)


def plan_of(replicas, blocks):
    return Plan(replicas, len(blocks), blocks, "cpu", 1, 0.0, 0, (0,) * len(blocks), 0)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, WHOLE), id="replicas", marks=pytest.mark.slow),
        pytest.param((1, CUT), id="shards"),
    ],
)
def fleet(request, parts, ray_cluster):
    pool, data, _ = parts.args
    replicas, blocks = request.param
    caches = parts.embeddings(f"fleet of {replicas}")
    with Fleet(pool, data, caches, plan_of(replicas, blocks)) as started:
        started.ready(600)
        yield started


def recipes(pool):
    """A merged model, one that a gate makes for each row, and the experts."""
    learned = gate_file(pool, random_gate(pool))
    return [MERGE, Recipe("dawe", {"grouping": "layer"}, learned), Recipe("experts")]


@pytest.fixture(scope="module")
def table(parts):
    """What one process gives."""
    local = parts.local("table")
    return [local.evaluate(recipe, "report") for recipe in recipes(parts.pool)]


def assert_equal(found, wanted):
    """The same table, and the same rows right by what the model writes."""
    assert found.metrics() == wanted.metrics()
    for task, score in wanted.scores.items():
        assert np.array_equal(score.samples(EXACT.name), found.scores[task].samples(EXACT.name))


def test_tables_are_those_of_one_process(fleet, parts, table):
    for recipe, wanted in zip(recipes(parts.pool), table, strict=True):
        assert_equal(fleet.client.evaluate(recipe, "report"), wanted)
    written = [each.metrics() for each in table]
    assert any(0 < found["exact/mean"] < 1 for found in written), written


def test_a_merged_model_is_that_of_one_process(fleet, parts):
    there, here = Caller(lambda: fleet.client), Caller(lambda: parts.local("merged"))
    assert_same(merged(MERGE, parts, there), merged(MERGE, parts, here))
    assert_same(evaluated(MERGE, there), evaluated(MERGE, here))


@pytest.mark.parametrize("method", LEARNED)
def test_what_is_learned_is_learned_in_one_process(method, fleet, parts):
    here = Caller(lambda: parts.local(f"learned {method}"))
    wanted = LEARNED[method](parts, here)
    assert_same(LEARNED[method](parts, Caller(lambda: fleet.client)), wanted)


@pytest.mark.slow
def test_a_process_killed_while_it_decodes_changes_no_row(fleet, parts, table):
    """Shards keep nothing between tokens: the call is made again, by one that has come back."""
    recipe, wanted = recipes(parts.pool)[1], table[1]
    begun = time.monotonic()
    assert_equal(fleet.client.evaluate(recipe, "report"), wanted)
    usual, repeated = time.monotonic() - begun, fleet.client.repeated_calls()
    victims = fleet.shards or fleet.replicas
    pids = [ray.get(victim.pid.remote()) for victim in victims]
    ref = fleet.client.submit(Evaluate(recipe, "report"))
    # Two passes score the answers of both tasks; then rows are written, a token a pass.
    for pid in pids if not fleet.shards else pids[-1:]:
        threading.Timer(usual / 2, os.kill, (pid, signal.SIGKILL)).start()
    assert_equal(fetched(ref), wanted)
    assert fleet.client.repeated_calls() > repeated
    assert torch.get_num_threads() == 1
