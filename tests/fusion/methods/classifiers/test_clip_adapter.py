"""CLIP-Adapter: its formula, and what learning leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import Labelled
from fusion.methods.classifiers.clip_adapter import Adapter, adapted, clip_adapter
from tests.fusion.methods.classifiers.labelled import labelled

C, D = 4, 16
DRAW = torch.Generator().manual_seed(0)
CENTRES = torch.randn(C, D, generator=DRAW)


FIT, SELECT = labelled(4 * CENTRES, 64, "fit", 1, 6.0), labelled(4 * CENTRES, 100, "select", 2, 6.0)
HEAD = 10 * normalize(CENTRES + 1.5 * torch.randn(C, D, generator=DRAW), dim=-1)
OPTIONS: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 16, "epochs": 30, "ratio": 0.6}


def right(features: torch.Tensor) -> float:
    return int((logits(features, HEAD).argmax(1) == SELECT.labels).sum()) / len(SELECT)


def test_formula_row_by_row() -> None:
    draw = torch.Generator().manual_seed(3)
    u = torch.randn(5, 8, generator=draw).double()
    down, up = (torch.randn(*shape, generator=draw).double() for shape in ((2, 8), (8, 2)))
    found = adapted(u, Adapter(down, up, 0.3))
    for row, wanted in zip(u, found, strict=True):
        hidden = [max(0.0, float(w @ row)) for w in down]
        out = [max(0.0, sum(a * h for a, h in zip(w.tolist(), hidden, strict=True))) for w in up]
        blended = [0.3 * a + 0.7 * b for a, b in zip(out, row.tolist(), strict=True)]
        assert wanted.tolist() == pytest.approx(blended, rel=1e-12)


def test_the_blend_comes_before_normalisation() -> None:
    adapter = Adapter(torch.eye(2), torch.eye(2), 0.5)
    u = torch.tensor([[2.0, -4.0]])  # A(u) = (2, 0)
    assert adapted(u, adapter).tolist() == [[2.0, -2.0]]
    assert adapted(u * 10, adapter).tolist() == [[20.0, -20.0]]
    fixed = Adapter(torch.zeros(1, 2), torch.zeros(2, 1), 0.5)
    torch.testing.assert_close(logits(adapted(u, fixed), torch.eye(2)), logits(u, torch.eye(2)))


def test_no_ratio_is_zero_shot() -> None:
    found = clip_adapter(FIT, SELECT, HEAD, ratio=0.0, epochs=2)
    assert torch.equal(adapted(SELECT.features, found.adapter), SELECT.features)
    assert found.accuracy == right(SELECT.features)


def test_learning_helps_and_the_best_epoch_is_kept() -> None:
    found = clip_adapter(FIT, SELECT, HEAD, **OPTIONS)
    assert found.adapter.down.shape == (4, 16)
    assert found.adapter.up.shape == (16, 4)
    first, last = found.history[1].loss, found.history[-1].loss
    assert first is not None
    assert last is not None
    assert last < 0.8 * first
    best = max(e.accuracy for e in found.history)
    assert found.epoch == next(e.epoch for e in found.history if e.accuracy == best)
    assert found.accuracy == best == right(adapted(SELECT.features, found.adapter))
    assert best > right(SELECT.features)


def test_weights_start_as_torchs_linear_layers_do() -> None:
    found = clip_adapter(FIT, SELECT, HEAD, epochs=0, seed=7)
    assert float(found.adapter.down.abs().max()) <= 1 / 4  # 16 inputs
    assert float(found.adapter.down.abs().max()) > 0.2
    assert float(found.adapter.up.abs().max()) <= 1 / 2  # 4 inputs
    assert float(found.adapter.up.abs().max()) > 0.4


def test_same_seed_same_bits() -> None:
    state = torch.get_rng_state()
    a, b, c = (clip_adapter(FIT, SELECT, HEAD, epochs=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.adapter.up, b.adapter.up)
    assert a.history == b.history
    assert not torch.equal(a.adapter.up, c.adapter.up)
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="choosing on what was learned from is not allowed"):
        clip_adapter(FIT, FIT, HEAD)
    with pytest.raises(InputError, match="head: 15 columns; 16 needed"):
        clip_adapter(FIT, SELECT, HEAD[:, 1:])
    with pytest.raises(InputError, match="reduction: 17; at most the width 16 allowed"):
        clip_adapter(FIT, SELECT, HEAD, reduction=17)
    with pytest.raises(InputError, match="fit: labels: row 3: class 3; 0 to 2 allowed"):
        clip_adapter(FIT, SELECT, HEAD[:3])
    narrow = Labelled(SELECT.features[:, :8], SELECT.labels, "select")
    with pytest.raises(InputError, match="select: features: 8 columns; 16 needed"):
        clip_adapter(FIT, narrow, HEAD)
    with pytest.raises(InputError, match="embeddings: 3 columns; 2 needed"):
        adapted(torch.ones(1, 3), Adapter(torch.eye(2), torch.eye(2), 0.5))
