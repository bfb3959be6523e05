"""Linear probes against scikit-learn, and LP-FT's against the same by hand."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from fusion.errors import InputError
from fusion.logits.dataset import Labelled
from fusion.methods.classifiers.linear_probe import Problem, linear_probe, lp_ft_probe

N, C, D = 120, 4, 7


def rows(seed: int, classes: int = C, n: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, D, generator=torch.Generator().manual_seed(9)).double()
    noise = torch.randn(n, D, generator=draw).double()
    return 3 + centres[labels] + noise, labels


X, Y = rows(0)
OTHER, WANTED = rows(1)


def sklearn(x: Tensor, y: Tensor, strength: float) -> Any:
    model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-10)
    return model.fit(x.numpy(), y.numpy())


@pytest.mark.parametrize("strength", [0.01, 0.316, 10.0])
def test_as_scikit_learn(strength: float) -> None:
    weight, bias = linear_probe(X, Y, convention="unnormalised", C=strength)
    model = sklearn(X, Y, strength)
    np.testing.assert_allclose(weight.numpy(), model.coef_, atol=5e-4)
    probabilities = (X @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(probabilities.numpy(), model.predict_proba(X.numpy()), atol=2e-4)


def test_two_classes_are_scikit_learns_binary_case_split_in_two() -> None:
    x, y = rows(2, classes=2)
    weight, bias = linear_probe(x, y, convention="unnormalised", C=0.5)
    model = sklearn(x, y, 0.5)
    torch.testing.assert_close(weight[0], -weight[1], atol=1e-9, rtol=0)
    assert float(bias.sum()) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(2 * weight[1].numpy(), model.coef_[0], atol=2e-4)
    np.testing.assert_allclose(2 * float(bias[1]), float(model.intercept_[0]), atol=1e-3)


def test_gradient_is_autograds() -> None:
    problem = Problem(X.numpy(), Y.numpy(), C)
    theta = torch.randn(C, D + 1, generator=torch.Generator().manual_seed(3)).double()
    theta.requires_grad_()
    weight, bias = theta[:, :-1], theta[:, -1]
    loss = torch.nn.functional.cross_entropy(X @ weight.T + bias, Y)
    loss = loss + 0.5 * 0.2 * weight.square().sum()
    loss.backward()
    value, gradient = problem.objective(theta.detach().numpy().ravel(), 0.2)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    assert theta.grad is not None
    np.testing.assert_allclose(gradient, theta.grad.numpy().ravel(), atol=1e-12)


def test_conventions_read_other_features() -> None:
    plain = linear_probe(X, Y, convention="unnormalised")
    unit = linear_probe(X, Y, convention="normalised")
    again = linear_probe(normalize(X, dim=-1), Y, convention="unnormalised")
    torch.testing.assert_close(unit, again)
    assert not torch.allclose(unit[0], plain[0], atol=1e-2)
    longer = X * torch.linspace(0.1, 10, N).double()[:, None]
    torch.testing.assert_close(linear_probe(longer, Y, convention="normalised"), unit)


def test_dtype_follows_features() -> None:
    weight, bias = linear_probe(X.half(), Y, convention="unnormalised")
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)


def test_a_class_without_rows_gets_zeros_and_never_wins() -> None:
    kept = Y != 2
    weight, bias = linear_probe(X[kept], Y[kept], convention="unnormalised", classes=5)
    assert weight.shape == (5, D)
    for number in (2, 4):
        assert not weight[number].any()
        assert bias[number] == 0
    winners = (OTHER @ weight.T + bias).argmax(1)
    assert set(winners.tolist()) == {0, 1, 3}


def test_too_few_iterations_are_said() -> None:
    with pytest.warns(RuntimeWarning, match="not converged after 2 iterations"):
        linear_probe(X, Y, convention="unnormalised", max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(X, Y, convention="unnormalised")


@pytest.mark.parametrize(
    ("features", "labels", "classes", "message"),
    [
        (X, Y, 3, "labels: row 3: class 3; 0 to 2 allowed"),
        (X, Y[:5], None, "labels: 5 for 120 rows; one a row needed"),
        (X, Y * 0, None, "labels: class 0 only; 2 or more classes needed"),
        (X / 0, Y, None, "features: row 0: NaN or infinity; finite numbers needed"),
    ],
)
def test_wrong_input_is_refused(
    features: Tensor, labels: Tensor, classes: int | None, message: str
) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message) + "$"):
        linear_probe(features, labels, convention="unnormalised", classes=classes)


def test_path_scales_by_one_number_and_undoes_it() -> None:
    fit, select = Labelled(X, Y, "fit"), Labelled(OTHER, WANTED, "select")
    found = lp_ft_probe(fit, select, low=1e-4, high=1e2, count=7, max_iter=2000)
    mean, std = X.mean(), X.std(correction=0)
    by_hand = []
    for strength in np.geomspace(1e-4, 1e2, 7):
        model = sklearn((X - mean) / std, Y, float(strength))
        by_hand.append(model.score(((OTHER - mean) / std).numpy(), WANTED.numpy()))
    assert [strength for strength, _ in found.path] == pytest.approx(np.geomspace(1e-4, 1e2, 7))
    # One sample may sit on a border that two solvers see from two sides.
    np.testing.assert_allclose([a for _, a in found.path], by_hand, atol=1.5 / N)
    best = max(accuracy for _, accuracy in found.path)
    assert found.accuracy == best
    assert min(strength for strength, a in found.path if a == best) == found.C
    model = sklearn((X - mean) / std, Y, found.C)
    logits = OTHER @ found.weight.T + found.bias
    wanted = model.predict_proba(((OTHER - mean) / std).numpy())
    np.testing.assert_allclose(logits.softmax(1).numpy(), wanted, atol=1e-3)
    assert int((logits.argmax(1) == WANTED).sum()) / N == found.accuracy


def test_path_pads_classes_that_only_select_has() -> None:
    seen = Y != 3
    found = lp_ft_probe(
        Labelled(X[seen], Y[seen], "fit"), Labelled(OTHER, WANTED, "select"), count=5
    )
    assert found.weight.shape == (C, D)
    assert not found.weight[3].any()


def test_path_refuses_its_own_rows_and_others_that_do_not_fit() -> None:
    fit = Labelled(X, Y, "fit")
    with pytest.raises(InputError, match="choosing on what was learned from is not allowed"):
        lp_ft_probe(fit, fit)
    with pytest.raises(InputError, match="select: features: 6 columns; 7 needed"):
        lp_ft_probe(fit, Labelled(OTHER[:, :6], WANTED, "select"))
    select = Labelled(OTHER, WANTED, "select")
    with pytest.raises(InputError, match=r"low: 10; at most high \(1\) allowed"):
        lp_ft_probe(fit, select, low=10, high=1)
    with pytest.raises(InputError, match="fit: features: all equal"):
        lp_ft_probe(Labelled(torch.ones_like(X), Y, "fit"), select)
    with pytest.raises(InputError, match="select: labels: row 3: class 3; 0 to 2 allowed"):
        lp_ft_probe(Labelled(X[:3], Y[:3], "fit"), select, classes=3)


def test_a_head_of_clip_s_form_is_the_probe_of_directions_without_intercept() -> None:
    fit, select = Labelled(X, Y, "fit"), Labelled(OTHER, WANTED, "select")
    found = lp_ft_probe(
        fit, select, convention="normalised", intercept=False, low=1e-3, count=5, max_iter=5000
    )
    assert not found.bias.any()
    unit, other = normalize(X, dim=-1), normalize(OTHER, dim=-1)
    scale = unit.std(correction=0)
    model = LogisticRegression(C=found.C, fit_intercept=False, max_iter=10_000, tol=1e-10)
    model.fit((unit / scale).numpy(), Y.numpy())
    logits = other @ found.weight.T
    wanted = model.predict_proba((other / scale).numpy())
    np.testing.assert_allclose(logits.softmax(1).numpy(), wanted, atol=1e-3)
    assert int((logits.argmax(1) == WANTED).sum()) / N == found.accuracy
    longer = Labelled(X * torch.arange(1.0, N + 1)[:, None], Y, "fit")  # lengths play no part
    again = lp_ft_probe(
        longer, select, convention="normalised", intercept=False, low=1e-3, count=5, max_iter=5000
    )
    torch.testing.assert_close(again.weight, found.weight, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="fit: features: row 2: of no length"):
        lp_ft_probe(
            Labelled(X * (torch.arange(N) != 2)[:, None], Y, "fit"), select, convention="normalised"
        )
