"""Placement: a pure function from bytes and machines to shards, or one line why not."""

import math
import re
import time
from dataclasses import replace

import pytest

from actors.cluster.partition import (
    DATA_STORE_BYTES,
    GPU_CONTEXT_BYTES,
    PROCESS_BYTES,
    STORE_MARGIN,
)
from actors.cluster.planner import Load, Node, Resources, gigabytes, plan
from actors.families.clip.architecture import DEFAULTS, vision_tensors
from fusion.errors import InputError
from tests.refusals import one_line

GB = 10**9


def tower(width, inner, layers, patch, out):
    """Bytes of each segment of a CLIP vision tower in float32."""
    sizes = {"hidden_size": width, "intermediate_size": inner, "patch_size": patch}
    found = [0] * (layers + 2)
    for name, shape in vision_tensors({**DEFAULTS, **sizes, "num_hidden_layers": layers}).items():
        layer = int(name.split(".")[2]) + 1 if name.startswith("encoder") else 0
        found[-1 if name.startswith("post") else layer] += 4 * math.prod(shape)
    found[-1] += 4 * out * width
    return tuple(found)


B32 = tower(768, 3072, 12, 32, 512)
B16 = tower(768, 3072, 12, 16, 512)
L14 = tower(1024, 4096, 24, 14, 768)

# Activations of one task's 16 images: reference/dawe_dawin.md section 4.2, doubled in float32.
KEPT = {B32: 0.25 * GB, B16: 0.99 * GB, L14: 3.44 * GB}


def half(segments, experts=8):
    return Load(segments, experts, 2, 2, GB // 10, int(KEPT[segments]))


def full(segments, experts=8):
    return Load(segments, experts, 4, 4, GB // 5, int(2 * KEPT[segments]))


def gpus(count, size, memory=256):
    return Resources((Node(16, count, memory * GB, int(size * GB)),))


def cores(*nodes):
    return Resources(tuple(Node(count, 0, int(memory)) for count, memory in nodes))


def test_published_sizes():
    assert [sum(model) / 4e6 for model in (B32, B16, L14)] == pytest.approx(
        [87.85, 86.19, 303.97], abs=0.01
    )
    assert [len(model) for model in (B32, B16, L14)] == [14, 14, 26]


@pytest.mark.parametrize(
    ("load", "need", "shards"),
    # Shards on GPUs of 16, 24, 40 and 80 GB: reference/dawe_dawin.md section 4.4.
    [
        (half(B32), 3.3, (1, 1, 1, 1)),
        (half(B16), 4.0, (1, 1, 1, 1)),
        (half(L14), 10.9, (1, 1, 1, 1)),
        (full(L14), 19.4, (2, 1, 1, 1)),
    ],
    ids=["b32-16bit", "b16-16bit", "l14-16bit", "l14-32bit"],
)
def test_what_fits_where(load, need, shards):
    found = [plan(load, gpus(4, size), replicas=1) for size in (16, 24, 40, 80)]
    assert tuple(each.shards for each in found) == shards
    assert found[-1].shard_bytes[0] == pytest.approx(need * GB, abs=0.65 * GB)
    assert all(max(p.shard_bytes) <= size * GB for p, size in zip(found, (16, 24), strict=False))


def test_a_replica_a_core_while_memory_lasts():
    load = Load(B32, 8, forward_bytes=GB)
    roomy = plan(load, cores((4, 64 * GB)))
    assert (roomy.replicas, roomy.shards, roomy.threads, roomy.device) == (4, 1, 1, "cpu")
    assert (roomy.blocks, roomy.gpus) == (((0, 14),), 0)
    assert roomy.store_bytes == int(9 * sum(B32) * STORE_MARGIN) + DATA_STORE_BYTES
    assert roomy.shard_bytes == (sum(B32) + 2 * max(B32) + GB + PROCESS_BYTES,)
    assert roomy.total_bytes == roomy.store_bytes + 4 * roomy.shard_bytes[0]
    tight = plan(load, cores((4, roomy.store_bytes + 2 * roomy.shard_bytes[0])))
    assert (tight.replicas, tight.threads) == (2, 2)
    assert plan(load, cores((4, 64 * GB)), replicas=1).threads == 4


def test_a_shard_is_what_its_parts_are():
    load = Load((400, 400, 400), 3, 2, 8, forward_bytes=50, training_bytes=90, transformed=True)
    found = plan(load, gpus(3, 16), shards=3)
    deltas = 3 * 400 // 2
    fixed = 400 + 2 * deltas + 2 * 400 + 2 * 400 + 50 + GPU_CONTEXT_BYTES
    assert found.blocks == ((0, 1), (1, 2), (2, 3))
    # 1F1B: the first shard of 3 keeps 3 micro-batches, the last keeps one.
    assert found.shard_bytes == (fixed + 3 * 30, fixed + 2 * 30, fixed + 30)
    assert found.store_bytes == int(3 * (400 + deltas) * STORE_MARGIN) + DATA_STORE_BYTES
    assert found.total_bytes == found.store_bytes + 3 * PROCESS_BYTES
    host = plan(load, cores((3, GB * 9)), shards=3).shard_bytes
    assert host[2] == deltas + 2 * 400 + 2 * 400 + 50 + 30 + PROCESS_BYTES


def test_task_vectors_in_files_take_one_tensor_each():
    load = Load((400, 400, 400), 3, 2, 8, forward_bytes=50, filed=True, largest=100)
    found = plan(load, cores((3, GB * 9)), shards=3)
    assert found.shard_bytes[0] == 3 * 100 + 2 * 400 + 2 * 400 + 50 + PROCESS_BYTES
    assert found.store_bytes == int(3 * 400 * STORE_MARGIN) + DATA_STORE_BYTES
    many = plan(replace(load, experts=30), cores((3, GB * 9)), shards=3)
    assert many.store_bytes == found.store_bytes
    assert many.shard_bytes[0] - found.shard_bytes[0] == 27 * 100
    changed = plan(replace(load, transformed=True), cores((3, GB * 9)), shards=3)
    assert changed.shard_bytes[0] - found.shard_bytes[0] == 2 * 3 * 100
    on_gpu = plan(replace(load, delta_itemsize=4), gpus(3, 16), shards=3).shard_bytes[0]
    assert on_gpu == 400 + 3 * 100 + 2 * 400 + 2 * 400 + 50 + GPU_CONTEXT_BYTES


def test_task_vectors_in_16_bits_take_half_and_one_tensor_in_float32():
    wide = Load((400, 400, 400), 3, 4, 4, forward_bytes=50, transformed=True, largest=100)
    narrow = replace(wide, delta_itemsize=2)
    first, second = (plan(each, gpus(3, 16), shards=3).shard_bytes[0] for each in (wide, narrow))
    # Task vectors and their transformed copy are halved; 3 rows of the largest tensor come on top.
    assert first - second == 2 * 3 * 400 // 2 - 3 * 100
    before, after = (
        plan(each, cores((3, GB * 9)), shards=3).store_bytes for each in (wide, narrow)
    )
    assert before - after == pytest.approx(3 * 3 * 200 * STORE_MARGIN, abs=1)


def test_a_plan_that_does_not_fit_says_what_16_bits_save():
    with pytest.raises(InputError) as caught:
        plan(full(L14), gpus(1, 15.5), shards=1)
    assert "placement.delta_dtype: bfloat16" in str(caught.value)
    narrow = replace(full(L14), delta_itemsize=2)
    assert plan(narrow, gpus(1, 15.5), shards=1).replicas == 1


def test_whole_replicas_first_then_shards():
    assert plan(full(L14), gpus(4, 24)).replicas == 4
    found = plan(full(L14), gpus(4, 16))
    assert (found.replicas, found.shards, found.gpus) == (2, 2, 1.0)
    assert found.blocks == ((0, 13), (13, 26))
    assert plan(full(L14), gpus(4, 80), shards=4).replicas == 1


def test_several_shards_share_a_gpu():
    found = plan(full(L14), gpus(2, 40), gpus=0.5)
    assert (found.replicas, found.gpus) == (4, 0.5)
    with pytest.raises(InputError, match=r"on a GPU of 24\.00 GB shared by 2; placement\.gpus: 1 "):
        plan(full(L14), gpus(1, 24), gpus=0.5)
    for wrong in (0, 1.5, -1, math.nan):
        with pytest.raises(InputError, match=r"placement\.gpus: .*; a fraction of a GPU"):
            plan(half(B32), gpus(1, 24), gpus=wrong)
    assert plan(Load(B32, 8), cores((2, 16 * GB)), gpus=0.5).gpus == 0


def test_gpus_without_room_for_stacked_passes_have_a_plan_without_them():
    alone = Load((GB, GB), experts=1, training_bytes=GB)
    stacked = replace(alone, stacked_bytes=6 * GB)
    assert plan(stacked, gpus(1, 40)).stacked
    small = gpus(1, 12)
    assert plan(stacked, small) == replace(plan(alone, small), stacked=False)
    with pytest.raises(InputError) as refusal:
        plan(stacked, gpus(1, 3))
    assert str(refusal.value) == str(refused(alone, gpus(1, 3)))


def test_gpus_of_unknown_size_are_trusted():
    assert plan(full(L14), gpus(2, 0)).replicas == 2


def test_nodes_that_hold_no_replica_hold_shards():
    load = Load(L14, 8)
    found = plan(load, cores((8, 12 * GB), (8, 12 * GB)), replicas=1)
    assert (found.shards, found.threads) == (2, 8)
    assert found.total_bytes <= 12 * GB
    assert found.store_bytes < 0.6 * plan(load, cores((8, 64 * GB))).store_bytes


def test_a_replica_stays_on_one_node_where_it_fits():
    load = Load(B32, 8)
    whole = plan(load, cores((8, 64 * GB))).store_bytes
    found = plan(load, cores((4, 64 * GB), (4, 64 * GB)), replicas=2, shards=2)
    assert (found.store_bytes, found.threads) == (whole, 2)


def test_nodes_without_cores_get_nothing():
    found = plan(Load(B32, 8), cores((0, GB), (4, 64 * GB)))
    assert (found.replicas, found.threads) == (4, 1)


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ({"replicas": 5}, "placement.replicas: 5; at most 4: one a CPU core"),
        ({"shards": 5}, "placement.shards: 5; at most 4: one a CPU core"),
        (
            {"replicas": 3, "shards": 2},
            "placement: 3 replicas of 2 shards are 6; at most 4: one a CPU core; "
            "replicas: 2 would do",
        ),
        ({"shards": 15}, "placement.shards: 15; the model has 14 segments: 1 to 14 allowed"),
        (
            {"device": "cuda"},
            "placement.device: 'cuda'; this machine or cluster has no GPU: use 'cpu'",
        ),
    ],
)
def test_more_than_there_is(wish, line):
    with pytest.raises(InputError, match=re.escape(line) + "$"):
        plan(Load(B32, 8), cores((4, 64 * GB)), **wish)


def refused(*args, **wish):
    with one_line() as lines:
        plan(*args, **wish)
    return lines[0]


def test_what_cannot_fit_on_a_gpu_says_what_would():
    line = refused(full(L14), gpus(4, 16), shards=1)
    assert re.fullmatch(
        r"placement: one replica needs 19\.9\d GB on a GPU of 16\.00 GB; placement\.shards: 2 fits",
        line,
    )
    assert refused(full(L14), gpus(2, 16), replicas=2).endswith("; placement.replicas: 1 fits")
    line = refused(full(L14), gpus(1, 16))
    assert line.endswith(
        "no number of shards fits; 2 GPUs of 16.00 GB, GPU memory of 20.00 GB, "
        "placement.dtype: float16, 4 experts or placement.device: cpu would do"
    )
    assert plan(full(L14), gpus(2, 16)).shards == 2
    assert plan(full(L14), gpus(1, 20)).shards == 1
    assert plan(full(L14, 4), gpus(1, 16)).shards == 1
    assert plan(full(L14), gpus(1, 16), device="cpu").replicas == 16
    refused(full(L14, 5), gpus(1, 16))
    refused(full(L14), gpus(1, 19.9))


def test_what_cannot_fit_in_main_memory_says_what_would():
    load = Load(B32, 8, forward_bytes=GB)
    filed = Load(L14, 8, largest=4 * 1024 * 4096)
    line = refused(filed, cores((2, 8 * GB)))
    assert ", placement.weights: files or 3 experts would do" in line
    assert plan(replace(filed, filed=True), cores((2, 8 * GB))).replicas == 2
    line = refused(load, cores((2, 3 * GB)))
    assert "weights: files" not in line  # how large a tensor is, is not known
    assert "1 replica(s) need 6.09 GB of memory, 3.00 GB are there; shards of one machine" in line
    assert "main memory of 6.10 GB would do" in line
    assert plan(load, cores((2, 6.1 * GB))).replicas == 1
    line = refused(load, cores((4, 9 * GB)), replicas=3)
    assert "3 replica(s) need " in line
    assert line.endswith("; placement.replicas: 2 fits")
    line = refused(Load(L14, 8), cores((8, 8 * GB), (8, 8 * GB)))
    assert "; no number of shards fits; 3 nodes of 8.00 GB, " in line
    assert plan(Load(L14, 8), cores(*[(8, 8 * GB)] * 3)).replicas > 0
    assert "main memory of " in refused(full(L14), gpus(2, 16, memory=10))


def test_hopeless_loads_are_refused_soon():
    start = time.process_time()
    line = refused(Load(L14, 500), cores(*[(64, GB)] * 16))
    assert line.startswith("placement: 1 replica(s) need ")
    assert time.process_time() - start < 10


def test_resources_add_up():
    found = Resources((Node(4, 0, 8), Node(2, 1, 6, 40), Node(2, 2, 9, 24), Node(1, 1, 9)))
    assert (found.cpus, found.gpus, found.memory, found.gpu_memory) == (9, 4, 6, 24)
    assert (Resources(()).memory, Resources((Node(1, 0, 5),)).gpu_memory) == (0, 0)


def test_gigabytes():
    assert gigabytes(0) == "0.00 GB"


def test_factors_are_what_a_node_keeps_of_adapters():
    load = Load((400, 400, 400), 4, forward_bytes=50, factors=(0, 60, 20), largest=100)
    loaded = plan(load, cores((3, GB * 9)), shards=3)
    assert loaded.store_bytes == int(3 * 5 * 400 * STORE_MARGIN) + DATA_STORE_BYTES
    kept = replace(load, factored=True)
    found = plan(kept, cores((3, GB * 9)), shards=3)
    assert found.store_bytes == int((3 * 400 + 80) * STORE_MARGIN) + DATA_STORE_BYTES
    assert found.shard_bytes[0] == 4 * 100 + 400 + 2 * 400 + 50 + PROCESS_BYTES
    changed = plan(replace(kept, transformed=True), cores((3, GB * 9)), shards=3)
    assert changed.shard_bytes[0] - found.shard_bytes[0] == 2 * 4 * 100
    fewer = plan(kept.of(1), cores((3, GB * 9)), shards=3)
    assert fewer.store_bytes == int((3 * 400 + 20) * STORE_MARGIN) + DATA_STORE_BYTES
    on_gpu = plan(kept, gpus(3, 16), shards=3).shard_bytes
    assert on_gpu[1] - on_gpu[0] == 60


def test_adapters_that_do_not_fit_may_stay_factored():
    factors = tuple(size // 50 for size in L14)
    load = replace(full(L14), experts=20, factors=factors, largest=10**7)
    with pytest.raises(InputError) as caught:
        plan(load, cores((2, GB * 12)))
    line = str(caught.value)
    assert ", placement.weights: factored or placement.weights: files would do" in line
    assert plan(replace(load, factored=True), cores((2, GB * 12))).replicas
    with pytest.raises(InputError) as caught:
        plan(replace(load, factors=()), cores((2, GB * 12)))
    assert "factored" not in str(caught.value)
