"""Placement: a pure function from bytes and machines to replicas, or one line why not."""

import pytest

from actors.placement import DATA_STORE_BYTES, PROCESS_BYTES, Resources, gigabytes, plan
from fusion.errors import InputError

GB = 10**9
B32 = 350 * 10**6
"""One ViT-B/32 in float32."""


def test_a_replica_a_core_while_memory_lasts():
    roomy = plan(B32, 8, GB, Resources(4, 0, 64 * GB))
    assert (roomy.replicas, roomy.threads, roomy.device) == (4, 1, "cpu")
    assert roomy.store_bytes == int(9 * B32 * 1.15) + DATA_STORE_BYTES
    assert roomy.replica_bytes == B32 + GB + PROCESS_BYTES
    assert roomy.total_bytes == roomy.store_bytes + 4 * roomy.replica_bytes
    tight = plan(B32, 8, GB, Resources(4, 0, roomy.store_bytes + 2 * roomy.replica_bytes))
    assert (tight.replicas, tight.threads) == (2, 2)


def test_wishes_are_kept_or_refused():
    assert plan(B32, 8, GB, Resources(4, 0, 64 * GB), replicas=1).threads == 4
    with pytest.raises(InputError, match=r"placement\.replicas: 5; at most 4: one a CPU core"):
        plan(B32, 8, GB, Resources(4, 0, 64 * GB), replicas=5)
    with pytest.raises(InputError, match="has no GPU: use 'cpu'"):
        plan(B32, 8, GB, Resources(4, 0, 64 * GB), device="cuda")


def test_a_gpu_holds_base_task_vectors_and_a_model():
    found = plan(B32, 8, GB, Resources(16, 2, 128 * GB, 80 * GB))
    assert (found.replicas, found.device) == (2, "cuda")
    assert found.replica_bytes > 10 * B32 + GB
    with pytest.raises(InputError, match=r"a replica needs 5\.\d\d GB on a GPU of 4\.00 GB"):
        plan(B32, 8, GB, Resources(16, 2, 128 * GB, 4 * GB))


def test_what_cannot_fit_says_what_would():
    with pytest.raises(InputError, match=r"1 replica\(s\) need .* use fewer experts or a larger"):
        plan(B32, 8, GB, Resources(2, 0, 3 * GB))
    with pytest.raises(InputError, match=r"3 replica\(s\) need .*; use fewer replicas"):
        plan(B32, 8, GB, Resources(4, 0, 7 * GB), replicas=3)


def test_gigabytes():
    assert gigabytes(0) == "0.00 GB"
