"""Low-rank task vectors stand in for dense ones."""

from __future__ import annotations

import pytest
import torch

from fusion.errors import InputError
from fusion.lowrank import LowRank
from fusion.merged import merged_linear


def factors(dtype: torch.dtype = torch.float64, tasks: int = 3, rank: int = 2) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(tasks, rank, 5, generator=generator, dtype=torch.float64)
    up = torch.randn(tasks, 7, rank, generator=generator, dtype=torch.float64)
    return LowRank(down.to(dtype), up.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_shape_and_dtype_are_those_of_the_dense(dtype: torch.dtype) -> None:
    low = factors(dtype)
    assert low.shape == low.dense().shape == (3, 7, 5)
    assert low.dtype == low.dense().dtype == dtype


def test_dense_is_the_product_of_each_task() -> None:
    low = factors()
    for t, delta in enumerate(low.dense()):
        for row, column in ((0, 0), (6, 4), (2, 3)):
            wanted = sum(float(low.up[t, row, r] * low.down[t, r, column]) for r in range(2))
            assert float(delta[row, column]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("form", ["auto", "A", "B"])
@pytest.mark.parametrize("models", [1, 4])
def test_a_layer_never_multiplies_them_out(
    form: str, models: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = factors()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    c = torch.randn(models, 3, generator=generator, dtype=torch.float64)
    base = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    wanted = merged_linear(x, c, base, low.dense(), form="A")
    monkeypatch.setattr(LowRank, "dense", None)
    found = merged_linear(x, c, base, low, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("down", "up"),
    [((2, 5), (3, 7, 2)), ((3, 2, 5), (7, 2)), ((2, 2, 5), (3, 7, 2)), ((3, 4, 5), (3, 7, 2))],
)
def test_factors_that_do_not_fit(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        LowRank(torch.ones(down), torch.ones(up))
    assert f"down {list(down)}, up {list(up)}; [T, r, in] and [T, out, r] needed" in str(
        caught.value
    )
