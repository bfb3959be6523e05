"""Carries between processes: what is packed is unpacked to the bit, and which way it goes."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from actors.artifacts.recipe import Recipe
from actors.cluster.peak_memory import PEAK_MEMORY
from actors.experts.requests import Gradients, Merge
from actors.fleet import transport
from actors.fleet.replica import Replica, ShardActor
from actors.fleet.replica_setup import Setup
from actors.fleet.transport import GpuLink, ObjectStoreLink, choose, pack, unpack
from actors.shards.resident_model import blueprint
from fusion.errors import InputError
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from tests.actors.fleet.sharded import SPLIT, plan_of


def same(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for name in wanted:
            same(got[name], wanted[name])
    elif isinstance(wanted, tuple):
        assert len(got) == len(wanted)
        for ours, theirs in zip(got, wanted, strict=True):
            same(ours, theirs)
    elif isinstance(wanted, torch.Tensor):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        view = torch.uint8 if wanted.dtype == torch.bool else wanted.dtype
        bits = wanted.contiguous().view(view).numel() and torch.equal(
            got.nan_to_num(7.0), wanted.contiguous().nan_to_num(7.0)
        )
        assert bits or wanted.numel() == 0
    else:
        assert got == wanted


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (2, 0), ()], ids=str)
def test_tensors_round_trip(dtype, shape):
    tensor = (torch.randn(shape) * 50).to(dtype)
    same(unpack(pack(tensor)), tensor)
    same(unpack(pack({"hidden": tensor})), {"hidden": tensor})


def test_bfloat16_keeps_infinities_and_signed_zeros():
    tensor = torch.tensor([float("inf"), -0.0, float("nan"), 1e-40], dtype=torch.bfloat16)
    got = unpack(pack(tensor))
    assert torch.equal(got.view(torch.int16), tensor.view(torch.int16))


def test_what_shards_return_round_trips():
    half = torch.randn(2, 3).bfloat16()
    for value in (
        ({"lines": 0.25, "tones": 1.5}, torch.randn(1, 3, 7), {"hidden": half}),
        (half, {"hidden": half}),
        (half, half),
        {"outer": {"inner": (half, torch.randn(2))}},
        (False, torch.randn(4)),
        (True, None),
        "text",
        ("lines", "tones"),
        (),
    ):
        same(unpack(pack(value)), value)


def test_views_and_what_autograd_tracks_are_packed():
    tensor = torch.randn(4, 6, requires_grad=True)
    packed = pack(tensor.t())
    assert packed.flags["C_CONTIGUOUS"]
    same(unpack(packed), tensor.detach().t().contiguous())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_read_only_arrays_are_not_copied(dtype, recwarn):
    packed = pack(torch.randn(5, 3).to(dtype))
    array = packed if isinstance(packed, np.ndarray) else packed.array
    array.flags.writeable = False  # as the object store's
    assert unpack(packed).data_ptr() == array.__array_interface__["data"][0]
    assert not [each for each in recwarn if "writable" in str(each.message)]


# --------------------------------------------------------------------------------- which transport


@pytest.mark.parametrize(
    ("device", "gpus", "shards"), [("cpu", 0, 2), ("cpu", 1, 2), ("cuda", 0.5, 2), ("cuda", 1, 1)]
)
def test_the_object_store_wherever_shards_have_no_gpu_each(device, gpus, shards, monkeypatch):
    monkeypatch.setattr(transport, "GpuLink", None)
    assert isinstance(choose([object()] * shards, device, gpus), ObjectStoreLink)


def test_direct_where_shards_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(transport, "find_spec", lambda name: object())
    monkeypatch.setattr(transport, "GpuLink", lambda shards, name: (len(shards), name))
    assert choose([1, 2, 3], "cuda", 1.0) == (3, "nccl")


def test_without_cupy_one_line_and_the_object_store(monkeypatch, caplog):
    """Ray's NCCL groups are written on it; nothing is tried that may take the actors along."""
    monkeypatch.setattr(transport, "find_spec", lambda name: None)
    monkeypatch.setattr(transport, "GpuLink", None)
    with caplog.at_level(logging.WARNING, "actors.fleet.transport"):
        assert isinstance(choose([1, 2], "cuda", 1.0), ObjectStoreLink)
    (record,) = caplog.records
    assert "pip install cupy-cuda12x" in record.getMessage()


@pytest.mark.parametrize(
    "fault", [ImportError, RuntimeError, ValueError, AttributeError, ray.exceptions.RayActorError]
)
def test_the_object_store_where_nccl_is_not_to_be_had(fault, monkeypatch, caplog):
    def refuse(*_):
        raise fault(*([] if fault is ray.exceptions.RayActorError else ["no NCCL here"]))

    monkeypatch.setattr(transport, "find_spec", lambda name: object())
    monkeypatch.setattr(transport, "GpuLink", refuse)
    with caplog.at_level(logging.WARNING, "actors.fleet.transport"):
        assert isinstance(choose([1, 2], "cuda", 1.0), ObjectStoreLink)
    assert fault is ray.exceptions.RayActorError or "no NCCL here" in caplog.text


class BrokenDirect(GpuLink):
    def __init__(self):
        pass


class TwoTries:
    """A replica's guard, without processes."""

    def __init__(self, link, error):
        self.error, self.calls = error, []
        runner = SimpleNamespace(pipeline=SimpleNamespace(link=link), device=torch.device("cpu"))
        self.experts = SimpleNamespace(runner=runner, meter=PEAK_MEMORY, merge=self.merge)

    def merge(self, recipe):
        self.calls.append(self.experts.runner.pipeline.link)
        if not isinstance(self.experts.runner.pipeline.link, ObjectStoreLink):
            raise self.error
        return 3


def test_a_broken_direct_transport_is_left_for_the_store():
    replica = TwoTries(BrokenDirect(), ray.exceptions.ActorUnavailableError("gone", None))
    assert Replica.call(replica, Merge(Recipe("ties"))) == 3
    assert isinstance(replica.experts.runner.pipeline.link, ObjectStoreLink)
    assert len(replica.calls) == 2


def test_what_a_method_refuses_is_not_tried_again():
    replica = TwoTries(BrokenDirect(), InputError("ties: density"))
    with pytest.raises(InputError, match="ties: density"):
        Replica.call(replica, Merge(Recipe("ties")))
    assert len(replica.calls) == 1


# ------------------------------------------------------------------------------ gloo, on processors


@pytest.fixture
def shards(parts, ray_cluster):
    """Two shards on processors that may use a direct transport."""
    from actors.families.clip.segments import clip_segments
    from actors.families.protocol import segment_names
    from actors.fleet.fleet import ROBUST, read_block

    setup = setup_of(parts)
    chain = clip_segments(parts.pool.base)
    names = [segment_names(chain, *block) for block in SPLIT[2]]
    flat = [ray.put(read_block(parts.pool, each)[1]) for each in names]
    weights = [ray.cloudpickle.dumps(ref) for ref in flat]
    shard = ray.remote(enable_tensor_transport=True, num_cpus=0, **ROBUST)(ShardActor)
    started = [shard.remote(setup, each, index) for index, each in enumerate(weights)]
    ray.get([each.pid.remote() for each in started], timeout=120)
    yield started
    for each in started:
        ray.kill(each)


def setup_of(parts):
    """A pickled reference to what the actors are built from."""
    pool, data, embeddings = parts.args
    base = blueprint(pool.base, pool.names)
    setup = Setup(base, pool.tasks, pool.groups, plan_of(1, 2), "float32", data, embeddings)
    return ray.cloudpickle.dumps(ray.put(setup))


@pytest.mark.ray
@pytest.mark.slow
def test_a_direct_transport_gives_the_same_bits(parts, shards):
    """gloo here stands for NCCL: the same calls, group and methods, on processors.

    Where a transfer fails, Ray 2.60 kills sender and receiver for good (`rdt_manager`, since
    collectives cannot be aborted), so the store is of no help to shards that had one in flight.
    """
    replica = Replica(setup_of(parts), None, ray.cloudpickle.dumps(shards))
    micro_batches = [
        MicroBatch({task: torch.arange(6)}, torch.full((1, 3, 1), 0.1 * at))
        for at, task in enumerate(parts.data, start=1)
    ]
    wanted = replica.call(Gradients(micro_batches, "select", Trim()))
    assert isinstance(replica.experts.runner.pipeline.link, ObjectStoreLink)

    replica.experts.runner.pipeline.link = GpuLink(shards, "gloo")
    check(replica.call(Gradients(micro_batches, "select", Trim())), wanted)
    assert isinstance(replica.experts.runner.pipeline.link, GpuLink)


def check(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.losses == theirs.losses
        assert torch.equal(ours.coding, theirs.coding)
