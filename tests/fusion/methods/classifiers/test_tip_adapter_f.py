"""Tip-Adapter-F: what is learned, what is chosen, and on which rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import Labelled
from fusion.methods.classifiers.tip_adapter import affinities, cache_keys, cache_values, tip_adapter
from fusion.methods.classifiers.tip_adapter_f import tip_adapter_f
from tests.fusion.methods.classifiers.labelled import labelled

C, D, K = 5, 12, 6
DRAW = torch.Generator().manual_seed(0)
CENTRES = torch.randn(C, D, generator=DRAW)


FIT, SELECT = labelled(CENTRES, C * K, "fit", 1, 1.6), labelled(CENTRES, 100, "select", 2, 1.6)
HEAD = 5 * normalize(CENTRES + 2 * torch.randn(C, D, generator=DRAW), dim=-1)
KEYS, VALUES = cache_keys(FIT.features[None]), cache_values(FIT.labels, C)
OPTIONS: dict[str, Any] = {"alpha": 2.0, "beta": 3.0, "batch_size": 8, "learning_rate": 0.02}


def right(keys: torch.Tensor, alpha: float, beta: float) -> float:
    fused = tip_adapter(SELECT.features, HEAD, keys, VALUES, alpha=alpha, beta=beta)
    return int((fused.argmax(1) == SELECT.labels).sum()) / len(SELECT)


def test_loss_goes_down_and_the_best_epoch_is_kept() -> None:
    found = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=12, **OPTIONS)
    assert [e.epoch for e in found.history] == list(range(13))
    assert found.history[0].loss is None
    first, last = found.history[1].loss, found.history[-1].loss
    assert first is not None
    assert last is not None
    assert last < 0.9 * first
    best = max(e.accuracy for e in found.history)
    assert found.epoch == next(e.epoch for e in found.history if e.accuracy == best)
    assert found.epoch > 0
    assert right(found.keys, 2.0, 3.0) == best
    assert not torch.equal(found.keys, KEYS)


def test_alpha_and_beta_are_chosen_with_the_keys_that_were_learned() -> None:
    found = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=5, **OPTIONS)
    assert right(found.keys, found.alpha, found.beta) == found.accuracy
    assert found.accuracy >= max(e.accuracy for e in found.history)
    assert found.accuracy == found.surface.best.accuracy
    assert found.alpha <= 50


def test_a_grid_of_alpha_has_the_one_learned_with() -> None:
    found = tip_adapter_f(
        FIT, SELECT, HEAD, KEYS, VALUES, epochs=2, betas=[1.0], alphas=[0.5], **OPTIONS
    )
    assert found.surface.alphas.tolist() == [0.5, 2.0]
    assert found.surface.values.tolist() == [1.0, 3.0]
    assert found.accuracy >= max(e.accuracy for e in found.history)


def test_one_step_is_adamws_by_hand() -> None:
    rate, decay = 0.05, 0.5
    found = tip_adapter_f(
        FIT,
        SELECT,
        HEAD,
        KEYS,
        VALUES,
        alpha=2.0,
        beta=3.0,
        learning_rate=rate,
        weight_decay=decay,
        batch_size=1000,
        epochs=1,
    )
    keys = KEYS.clone().requires_grad_()
    near = normalize(FIT.features, dim=-1) @ keys.T
    zero_shot = logits(FIT.features, HEAD)
    loss = cross_entropy(zero_shot + 2 * (-3 * (1 - near)).exp() @ VALUES, FIT.labels)
    loss.backward()
    assert found.history[1].loss == pytest.approx(loss.item(), rel=1e-6)
    assert keys.grad is not None
    # The first step: m̂ = g and v̂ = g²; the decay is apart; ε is the released code's.
    stepped = KEYS * (1 - rate * decay) - rate * keys.grad / (keys.grad.abs() + 1e-4)
    assert found.epoch == 1
    torch.testing.assert_close(found.keys, stepped, atol=1e-4, rtol=0)


def test_no_epoch_is_tip_adapter_with_alpha_and_beta_chosen() -> None:
    found = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=0, **OPTIONS)
    assert torch.equal(found.keys, KEYS)
    assert found.epoch == 0
    assert found.history[0].accuracy == right(KEYS, 2.0, 3.0)


def test_same_seed_same_bits_and_inputs_are_not_touched() -> None:
    keys, state = KEYS.clone(), torch.get_rng_state()
    a = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=3, seed=4, **OPTIONS)
    b = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=3, seed=4, **OPTIONS)
    c = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=3, seed=5, **OPTIONS)
    assert torch.equal(a.keys, b.keys)
    assert a.history == b.history
    assert [e.loss for e in a.history] != [e.loss for e in c.history]
    assert torch.equal(KEYS, keys)
    assert torch.equal(state, torch.get_rng_state())


def test_selecting_and_fitting_on_the_same_rows_is_refused() -> None:
    with pytest.raises(InputError, match="choosing on what was learned from is not allowed"):
        tip_adapter_f(FIT, FIT, HEAD, KEYS, VALUES)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="head: 11 columns; 12 needed"):
        tip_adapter_f(FIT, SELECT, HEAD[:, 1:], KEYS, VALUES)
    with pytest.raises(InputError, match="keys: 11 columns; 12 needed"):
        tip_adapter_f(FIT, SELECT, HEAD, KEYS[:, 1:], VALUES)
    with pytest.raises(InputError, match="values: 29 rows; 30 needed"):
        tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES[1:])
    with pytest.raises(InputError, match="values: 5 columns; 4 needed"):
        tip_adapter_f(FIT, SELECT, HEAD[:4], KEYS, VALUES)
    fit = Labelled(FIT.features, FIT.labels % 4, "fit")
    with pytest.raises(InputError, match="select: labels: row 4: class 4; 0 to 3 allowed"):
        tip_adapter_f(fit, SELECT, HEAD[:4], KEYS, VALUES[:, :4])
    with pytest.raises(InputError, match="keys: row 0: NaN or infinity"):
        tip_adapter_f(FIT, SELECT, HEAD, KEYS * math.nan, VALUES)


def test_a_loss_that_leaves_the_numbers_is_said() -> None:
    with pytest.raises(InputError, match=r"loss: (nan|inf) in epoch \d+; a learning_rate below"):
        tip_adapter_f(
            FIT, SELECT, HEAD, KEYS, VALUES, epochs=5, learning_rate=1e30, alpha=2, beta=3
        )


def test_affinities_of_learned_keys_may_exceed_one() -> None:
    found = tip_adapter_f(FIT, SELECT, HEAD, KEYS, VALUES, epochs=12, **OPTIONS)
    assert float(affinities(found.keys, found.keys).max()) > 1
