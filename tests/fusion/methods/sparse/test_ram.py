"""RAM and RAM+ by hand and entry by entry in float64, of whole models and of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.methods.sparse.ram import ram
from fusion.methods.static.average import simple_average
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn, vectors_of
from tests.fusion.laws import SCHEMAS, TASKS, assert_same_bits, toy


def test_by_hand() -> None:
    # shared: the first and fourth entry; a alone: the second; b alone: the third and fifth
    vectors = vectors_of([2.0, 3.0, 0.0, -1.0, 1e-6], [4.0, 0.0, -6.0, 3.0, 8.0])
    assert ram(vectors)["w"].tolist() == pytest.approx([3, 3, -6, 1, 8])
    # ρ = 2 and 1: λ = 1 + 0.1·1.5 and 1 + 0.1·1
    plus = ram(vectors, plus=True, alpha=1.5)["w"].tolist()
    assert plus == pytest.approx([3, 3 * 1.15, -6 * 1.1, 1, 8 * 1.1])
    clipped = ram(vectors, plus=True)["w"].tolist()
    assert clipped == pytest.approx([3, 3 * 1.02, -6 * 1.02, 1, 8 * 1.02])


def reference(
    deltas: dict[str, torch.Tensor], epsilon: float, r: float, alpha: float, plus: Any
) -> dict[str, torch.Tensor]:
    """Merged task vectors in float64, entry by entry; `plus`: False, "model" or "tensor"."""
    changed = {name: delta.double().abs() > epsilon for name, delta in deltas.items()}

    def scales(names: list[str]) -> list[float]:
        found = []
        for at in range(len(next(iter(deltas.values())))):
            shared = own = 0
            for name in names:
                several = changed[name].sum(0) > 1
                shared += int((changed[name][at] & several).sum())
                own += int((changed[name][at] & ~several).sum())
            found.append(1 + r * min(shared / own if own else 0.0, alpha))
        return found

    merged = {}
    for name, delta in deltas.items():
        factors = [1.0] * len(delta)
        if plus:
            factors = scales([*deltas] if plus == "model" else [name])
        out = torch.zeros(delta[0].numel(), dtype=torch.float64)
        flat, masks = delta.double().flatten(1), changed[name].flatten(1)
        for j in range(len(out)):
            used = [t for t in range(len(delta)) if masks[t, j]]
            if len(used) == 1:
                out[j] = factors[used[0]] * flat[used[0], j]
            elif used:
                out[j] = sum(flat[t, j] for t in used) / len(used)
        merged[name] = out.view(delta.shape[1:])
    return merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plus", [False, "model", "tensor"])
def test_against_float64(plus: Any, dtype: torch.dtype) -> None:
    deltas = {"a": drawn(4, 9, 7, seed=1, dtype=dtype), "b": drawn(4, 20, seed=2, dtype=dtype)}
    base = {"a": drawn(9, 7, dtype=dtype), "b": drawn(20, seed=3, dtype=dtype)}
    vectors = TaskVectors(tuple("wxyz"), base, deltas)
    options: dict[str, Any] = {"plus": True, "granularity": plus} if plus else {}
    found = ram(vectors, epsilon=1.1, r=0.6, alpha=0.9, **options)
    for name, wanted in reference(deltas, 1.1, 0.6, 0.9, plus).items():
        wide = (base[name].double() + wanted).to(dtype)
        torch.testing.assert_close(found[name], wide, rtol=1e-5, atol=1e-6)


def test_ends() -> None:
    for schema in SCHEMAS:
        vectors = toy(schema)
        assert_same_bits(ram(vectors, epsilon=1e3), vectors.base)
        assert_same_bits(ram(vectors, plus=True, r=0.0), ram(vectors))
    dense, mean = ram(toy(), epsilon=0.0), simple_average(toy())
    for name, tensor in mean.items():
        torch.testing.assert_close(dense[name], tensor)
    alone = toy(tasks=TASKS[:1])
    for name, tensor in ram(alone, epsilon=0.0, plus=True).items():  # nothing is shared
        torch.testing.assert_close(tensor, alone.base[name] + alone.deltas[name][0])
