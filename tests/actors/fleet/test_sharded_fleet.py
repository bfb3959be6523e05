"""Replicas of shards on real processes: what they compute is what one process computes."""

import os
import pickle
import shutil
import signal
import threading
import time

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts.recipe import Recipe
from actors.experts.local import local_experts
from actors.experts.requests import Evaluate, Gradients, Train
from actors.fleet.fleet import Fleet, FleetOptions
from actors.fleet.replica import Replica
from actors.fleet.transport import ObjectStoreLink, fetched
from actors.pool.pool import open_pool
from actors.pool.vectors_low_rank import (
    FactoredVectors,
    factor_bytes,
    factor_vectors,
    opened_factors,
)
from actors.pool.vectors_on_disk import OnDiskVectors
from fusion.errors import InputError
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.actors.fleet.sharded import plan_of
from tests.actors.laws.cases import TYPICAL, Caller, assert_same, micro_batches_of
from tests.actors.laws.parts import recipes
from tests.fusion import laws

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def local(parts):
    return parts.local()


@pytest.fixture(
    scope="module",
    # Three shards: a first, a middle and a last one. test_failures trains over two; test_fleet has
    # two replicas.
    params=[*(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 2), (2, 1))), (1, 3)],
    ids=lambda p: f"{p[0]}x{p[1]}",
)
def fleet(request, parts, ray_cluster):
    pool, data, _ = parts.args
    embeddings = parts.embeddings(f"fleet-{request.param}")  # each makes its own
    with Fleet(pool, data, embeddings, plan_of(*request.param)) as started:
        started.ready(120)
        yield started


@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_same_bits(case, fleet, parts):
    """The law of `tests/actors/laws`, on processes."""
    wanted = case.observe(parts, Caller(lambda: parts.local(f"{case} wanted")))
    assert_same(case.observe(parts, Caller(lambda: fleet.client)), wanted)


def test_two_trainings_at_once_are_each_as_alone(fleet, local, parts):
    """Other seeds, learning rates, groupings and trims; four slots ask for a coordinator's two."""
    courses = [
        {"grouping": "task", "learning_rate": 1e-2},
        {"grouping": "layer", "batch_mean": False, "gate_seed": 1},
    ]
    alone = [parts.train(local, steps=6, **course) for course in courses]
    found: dict[int, dict[str, torch.Tensor]] = {}

    def work(at: int) -> None:
        torch.set_num_threads(1)
        found[at] = parts.train(fleet.client, steps=6, **courses[at % 2])

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for at in range(4):
        laws.assert_same_bits(found[at], alone[at % 2])


@pytest.mark.slow
def test_two_calls_that_learn_in_shards_are_each_as_alone(fleet, local):
    """Both write into the same resident models, step by step in turn."""
    few = {"batch_size": 4, "learning_rate": 0.02, "adapt_on": "select"}
    methods = ("wemoe", "concrete_task_arithmetic", "concrete_adamerging", "ewemoe")
    courses = [Recipe(method, few) for method in methods]
    alone = [local.train(recipe, None, 0, 6, 5) for recipe in courses]
    refs = [fleet.client.submit(Train(recipe, None, 0, 6, 5)) for recipe in courses]
    assert [fetched(ref) for ref in refs] == alone


@pytest.mark.slow
def test_a_shard_that_dies_while_it_learns_changes_no_bit(fleet, local):
    """Its parameters are gone with it: the call is made again from its start."""
    recipe = Recipe("wemoe", {"batch_size": 4, "learning_rate": 0.02, "adapt_on": "select"})
    state, losses = local.train(recipe, None, 0, 40, 5)
    ref = fleet.client.submit(Train(recipe, None, 0, 40, 5))
    time.sleep(0.5)
    victim = (fleet.shards or fleet.replicas)[-1]
    os.kill(ray.get(victim.pid.remote()), signal.SIGKILL)
    assert fetched(ref) == (state, losses)


class Watched(ObjectStoreLink):
    """Notes what is fetched."""

    def __init__(self):
        self.fetched: list[object] = []

    def get(self, pending):
        value = super().get(pending)
        self.fetched.append(value)
        return value


def test_activations_pass_neither_through_the_conductor_nor_through_the_driver(fleet, local, parts):
    """A coordinator in this process, over the fleet's own shards, notes all that it fetches."""
    if not fleet.shards:
        pytest.skip("one shard: nothing travels")
    coordinator = Replica(
        ray.cloudpickle.dumps(fleet.setup), None, ray.cloudpickle.dumps(fleet.shards)
    )
    link = coordinator.experts.runner.pipeline.link = Watched()
    micro_batches = micro_batches_of(parts, "layer sample")
    found = coordinator.call(Gradients(micro_batches, "select", Trim()))
    for ours, theirs in zip(local.gradients(micro_batches, "select", Trim()), found, strict=True):
        assert torch.equal(ours.coding, theirs.coding)
    for value in link.fetched:  # losses, and gradients by coding of a block's tensors
        columns = isinstance(value, torch.Tensor) and value.shape[1] == len(parts.pool.tasks)
        losses = isinstance(value, tuple) and type(value[1]) is float
        losses = losses and all(type(v) is float for v in value[0].values())
        assert columns or losses
    link.fetched.clear()
    coordinator.call(Evaluate(recipes(parts.pool)["dawe"], "report"))
    assert all(value.keys() == {"output"} for value in link.fetched)
    # And to a client come losses and codings, or scores: less than one hidden state takes.
    hidden = 8 * 5 * 32 * 4  # images, tokens, width, bytes
    micro_batches = micro_batches_of(parts, "task mean")
    answer = ray.get(fleet.client.submit(Gradients(micro_batches, "select", Trim())))
    assert sum(gradient.coding.nbytes for gradient in answer) < hidden
    answer = ray.get(fleet.client.submit(Evaluate(recipes(parts.pool)["ties"], "report")))
    assert len(pickle.dumps(answer)) < hidden


@pytest.fixture
def loose(parts, tmp_path):
    """The pool with experts' files of its own, to be lost."""
    experts = {}
    for task in parts.pool.tasks:
        folder = parts.pool.experts[task].folder
        experts[task] = str(shutil.copytree(folder, tmp_path / task))
    return open_pool(str(parts.pool.base.folder), experts)


@pytest.mark.slow
def test_experts_that_stay_factored(parts, tmp_path):
    """On real processes what one process gives; of task vectors, factors alone are sent."""
    base, q = parts.pool.base.folder, "encoder.layers.0.self_attn.q_proj.weight"
    folders = {
        task: str(write_adapter(tmp_path / task, base, seed=at, rank=1 + at))
        for at, task in enumerate(parts.pool.tasks)
    }
    pool, data = open_pool(str(base), folders), parts.data
    torch.set_num_threads(1)
    local, dense = (
        local_experts(pool, data, parts.embeddings(name), vectors=vectors)
        for name, vectors in (("factored", opened_factors(factor_vectors(pool))), ("dense", None))
    )
    coding = torch.rand(1, 3, len(pool.groups), generator=torch.Generator().manual_seed(1))
    micro_batch = [MicroBatch({task: torch.arange(6) for task in pool.tasks}, coding)]
    recipe = recipes(pool)["task_arithmetic"]
    with Fleet(
        pool, data, parts.embeddings("adapters"), plan_of(1), FleetOptions(weights="factored")
    ) as fleet:
        fleet.ready(120)
        (held,) = ray.get(fleet.flat)
        assert isinstance(held, FactoredVectors)
        assert held.nbytes == pool.base_bytes + factor_bytes(pool, pool.names)
        first, *others = (
            who.evaluate(recipe, "report").metrics() for who in (local, fleet.client, dense)
        )
        assert others == [first, first]
        (mine,), (its,), (near,) = (
            who.gradients(micro_batch, "select", Trim()) for who in (local, fleet.client, dense)
        )
    assert mine.losses == its.losses
    assert torch.equal(mine.coding, its.coding)
    changed = [at for at, name in enumerate(pool.groups) if name in pool.experts["lines"].factors]
    assert pool.groups.index(q) in changed
    assert mine.coding[:, :, changed].all()
    assert mine.coding.count_nonzero() == 3 * len(changed)
    torch.testing.assert_close(mine.coding, near.coding, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (1, 2)], ids=str)
def test_experts_that_stay_in_files(shape, loose, local, parts):
    """The same bits; no task vector in the object store; a lost file ends in its name, at once and
    for a replica that starts again."""
    _, data, embeddings = parts.args
    micro_batches, known = micro_batches_of(parts, "layer sample"), recipes(parts.pool)
    with Fleet(loose, data, embeddings, plan_of(*shape), FleetOptions(weights="files")) as fleet:
        fleet.ready(120)
        for filed in ray.get(fleet.flat):
            assert isinstance(filed, OnDiskVectors)
            assert not filed.flat.deltas
        for name in ("task_arithmetic", "ties", "adamerging++"):
            ours, theirs = (who.evaluate(known[name], "report") for who in (local, fleet.client))
            assert ours.metrics() == theirs.metrics(), name
        expected = local.gradients(micro_batches, "select", Trim())
        found = fleet.client.gradients(micro_batches, "select", Trim())
        for mine, its in zip(expected, found, strict=True):
            assert mine.losses == its.losses
            assert torch.equal(mine.coding, its.coding)
        files = [expert.files[0] for expert in loose.experts.values()]
        file = files[0]
        for gone in (files[:1], files[1:]):
            for each in gone:
                each.unlink()
            if file not in gone:  # a replica that sees none does not come up again
                victim = (fleet.shards or fleet.replicas)[0]
                os.kill(ray.get(victim.pid.remote()), signal.SIGKILL)
            with pytest.raises(InputError) as caught:
                fleet.client.gradients(micro_batches, "select", Trim())
            assert str(caught.value).startswith("pool.experts.")
            assert f"{file}: No such file or directory (node " in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["memory", "files"])
def test_finished_models_are_evaluated_in_shards(weights, parts, tmp_path):
    """One of its own, sent through the object store, and one that is an expert."""
    base, experts = parts.pool.base.folder, parts.pool.experts
    first = next(iter(experts))
    other = write_adapter(tmp_path / "adapter", base, seed=5)
    references = {"mtl": str(other), "twin": str(experts[first].folder)}
    sources = {name: str(each.folder) for name, each in experts.items()}
    pool = open_pool(str(base), sources, references)
    local = local_experts(pool, parts.data, parts.embeddings(f"references-{weights}-local"))
    cache = parts.embeddings(f"references-{weights}")
    with Fleet(pool, parts.data, cache, plan_of(2, 2), FleetOptions(weights=weights)) as fleet:
        fleet.ready(120)
        for recipe in (Recipe("mtl"), Recipe("ties"), Recipe("mtl"), Recipe("twin")):
            found = fetched(fleet.client.submit(Evaluate(recipe, "report")))
            assert found.metrics() == local.evaluate(recipe, "report").metrics(), recipe
        own = fetched(fleet.client.submit(Evaluate(Recipe("experts"), "report")))
        assert found.metrics()[f"nll/{first}"] == own.metrics()[f"nll/{first}"]


@pytest.mark.slow
def test_a_broken_finished_model_is_refused_at_the_start(parts, tmp_path):
    bad = shutil.copytree(parts.pool.base.folder, tmp_path / "bad")
    tensors = load_file(bad / "model.safetensors")
    tensors["vision_model.post_layernorm.bias"].fill_(float("inf"))
    save_file(tensors, bad / "model.safetensors")
    sources = {name: str(each.folder) for name, each in parts.pool.experts.items()}
    pool = open_pool(str(parts.pool.base.folder), sources, {"mtl": str(bad)})
    with (
        pytest.raises(InputError, match=r"references\.mtl: .*post_layernorm\.bias"),
        Fleet(pool, parts.data, parts.embeddings("broken"), plan_of(1, 2)) as fleet,
    ):
        fleet.ready(120)
