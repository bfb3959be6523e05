"""NearSwap by hand, and against its weights in float64."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.static.nearswap import nearswap
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn, vectors_of
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def test_by_hand() -> None:
    vectors = vectors_of([0.2, -0.2, 1.0, -3.0, 0.0], base=1.0)
    found = nearswap(vectors, t=0.5)["w"].tolist()
    assert found == pytest.approx([1.2, 0.8, 1.5, 0.5, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_its_weights(dtype: torch.dtype) -> None:
    base, deltas = drawn(30, 40, dtype=dtype), 0.01 * drawn(3, 30, 40, seed=1, dtype=dtype)
    vectors = TaskVectors(TASKS, {"w": base}, {"w": deltas})
    for t in (1e-4, 0.01, 0.1):
        start, end = base.double(), base.double() + deltas[1].double()
        share = (t / (end - start).abs().clamp(min=1e-6)).clamp(0, 1)
        wanted = share * end + (1 - share) * start
        found = nearswap(vectors, t=t, expert="svhn")["w"]
        torch.testing.assert_close(found, wanted.to(dtype), rtol=1e-6, atol=1e-9)


def test_ends() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        assert_same_bits(nearswap(vectors, t=0.0, expert="dtd"), vectors.base)
        for name, tensor in nearswap(vectors, t=1e3, expert="dtd").items():
            if name in vectors.deltas:
                wide = vectors.base[name].double() + vectors.deltas[name][2].double()
                torch.testing.assert_close(tensor, wide.to(tensor.dtype))


def test_only_one_expert_is_read() -> None:
    vectors = toy()
    changed = {name: delta.clone() for name, delta in vectors.deltas.items()}
    for delta in changed.values():
        delta[:2] = 7.0
    other = TaskVectors(vectors.tasks, vectors.base, changed)
    assert_same_bits(nearswap(other, expert="dtd"), nearswap(vectors, expert="dtd"))


def test_which_expert_must_be_known() -> None:
    with pytest.raises(InputError, match="nearswap: expert: not given; one of mnist, svhn, dtd"):
        nearswap(toy())
    with pytest.raises(InputError, match=r"nearswap: expert: .*did you mean 'svhn'"):
        nearswap(toy(), expert="svnh")
