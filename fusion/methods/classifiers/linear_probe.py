"""Linear probes: multinomial logistic regression on features computed once.

Axes: N rows, D feature width, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
import scipy
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import InputError
from fusion.logits.dataset import (
    Labelled,
    check_different_rows,
    check_labels,
    check_matrix,
    unit_rows,
)
from fusion.task_vectors.task_vectors import accumulator

Array: TypeAlias = NDArray[np.float64]
Convention: TypeAlias = Literal["unnormalised", "normalised"]

STEEP = 1e-6
"""Convergence threshold for the largest entry of the gradient of the mean objective."""

FLAT = 64 * float(np.finfo(np.float64).eps)
"""Convergence threshold for the relative decrease of the objective, scikit-learn's."""


def linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    convention: Convention,
    C: Annotated[float, Interval(gt=0)] = 0.316,
    max_iter: Annotated[int, Interval(ge=1)] = 1000,
    classes: Annotated[int | None, Interval(ge=2)] = None,
) -> tuple[Tensor, Tensor]:
    """Linear probe: multinomial logistic regression by L-BFGS in float64, starting from zero.

    Minimises C·Σ_n CE(x_nWᵀ + b, y_n) + ½‖W‖², without penalty on b. Two classes are scikit-learn's
    binary case: one w with ½‖w‖², returned as (−w/2, +w/2). A class without rows gets zeros. It
    never wins because of that, since the others' logits sum to zero.

    Args:
        features: [N, D], not normalised.
        labels: int64 [N].
        convention: `unnormalised`: x is the feature itself, OpenAI's recipe. `normalised`: x =
            n(feature), as for zero-shot heads, Tip-Adapter and soups of heads. A probe of one
            convention cannot be used with the other, so there is no default.
        C: inverse strength of the penalty. Default 0.316, OpenAI's for CIFAR-100; choose it on a
            separate split. `normalised` features are short and need a larger C.
        max_iter: of L-BFGS. Default 1000, OpenAI's. A warning is given if it is too small.
        classes: number of classes. Default: the largest label + 1.

    Returns:
        W [C, D] and b [C], in float32 (float64 where features are): logits are xWᵀ + b.

    Raises:
        InputError: other shapes, NaN or infinity, a label outside, labels of one class only.

    Source: Radford et al. 2021, arXiv:2103.00020, and its repository's example.
    """
    check_matrix("features", features)
    check_labels("labels", labels, len(features), classes)
    count = int(labels.max()) + 1 if classes is None else classes
    read = features if convention == "unnormalised" else unit_rows("features", features)
    fitted = Problem(to_array(read), labels.cpu().numpy(), count).fit(C, max_iter)
    if not fitted.converged:
        warnings.warn(
            f"linear_probe: not converged after {max_iter} iterations (C {C:g});"
            " a larger max_iter or a smaller C needed",
            RuntimeWarning,
            stacklevel=2,
        )
    return to_tensor(fitted.weight, features), to_tensor(fitted.bias, features)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear head whose C was chosen on a split."""

    weight: Tensor
    """W [C, D]."""
    bias: Tensor
    """b [C]: logits are xWᵀ + b, with x normalised or not by the convention."""
    C: float
    """The chosen inverse strength of the penalty."""
    accuracy: float
    """Accuracy on the selection rows."""
    path: tuple[tuple[float, float], ...]
    """(C, accuracy on the selection rows) of every fit, in order."""


def lp_ft_probe(
    fit: Labelled,
    select: Labelled,
    *,
    convention: Convention = "unnormalised",
    intercept: bool = True,
    low: Annotated[float, Interval(gt=0)] = 1e-7,
    high: Annotated[float, Interval(gt=0)] = 1e2,
    count: Annotated[int, Interval(ge=1)] = 50,
    max_iter: Annotated[int, Interval(ge=1)] = 200,
    classes: Annotated[int | None, Interval(ge=2)] = None,
) -> Probe:
    """The head that LP-FT starts from: a path of probes over C, the best on `select` taken.

    Features are x = (f − μ)/σ with one μ and one σ for the whole matrix of `fit`, not one a
    dimension. Fits go from small C to large, each from the one before. The scaling is undone in the
    head: W = W'/σ, b = b' − (μ/σ)·Σ_d W'_d.

    The defaults are the authors'. `convention="normalised"` with `intercept=False` is a deviation
    from them that gives a head of CLIP's form, logits n(f)Wᵀ: features are divided by their length
    first, b = 0, and μ = 0, for a mean that is taken off cannot be given back without b.

    Args:
        fit: what is learned from.
        select: what C is chosen on; of equal accuracies the smallest C.
        convention: as `linear_probe`'s: whether f is the feature or n(feature).
        intercept: whether b is fitted.
        low: smallest C.
        high: largest C.
        count: fits, log-spaced. Default 50: the authors' launcher (their function: 100).
        max_iter: of each fit; one that has not converged is used as it is.
        classes: number of classes. Default: as many as the largest label of both says. One without
            a row in `fit` gets zeros.

    Raises:
        InputError: the same rows twice, another width, labels outside or of one class only,
            features that are all equal, low above high.

    Source: Kumar et al. 2022, arXiv:2202.10054, and its code.
    """
    check_different_rows(fit, select)
    check_matrix(f"{select.split}: features", select.features, width=fit.features.shape[1])
    if low > high:
        raise InputError(f"low: {low:g}; at most high ({high:g}) allowed")
    if classes is None:
        classes = int(torch.cat([fit.labels.cpu(), select.labels.cpu()]).max()) + 1
    for rows in (fit, select):
        check_labels(f"{rows.split}: labels", rows.labels, len(rows), classes)
    x, others = (
        to_array(
            rows.features
            if convention == "unnormalised"
            else unit_rows(f"{rows.split}: features", rows.features)
        )
        for rows in (fit, select)
    )
    mean, std = float(x.mean()) if intercept else 0.0, float(x.std())
    if std == 0:
        raise InputError(f"{fit.split}: features: all equal; nothing to learn from")
    problem = Problem((x - mean) / std, fit.labels.cpu().numpy(), classes, intercept)
    scaled = (others - mean) / std
    wanted = select.labels.cpu().numpy()

    best: tuple[float, float, Fitted] | None = None
    path, last = [], None
    for C in np.geomspace(low, high, count).tolist():
        last = problem.fit(C, max_iter, start=last)
        accuracy = float(((scaled @ last.weight.T + last.bias).argmax(1) == wanted).mean())
        path.append((C, accuracy))
        if best is None or accuracy > best[0]:
            best = (accuracy, C, last)
    assert best is not None  # count >= 1
    accuracy, C, fitted = best
    weight = fitted.weight / std
    bias = fitted.bias - mean * weight.sum(1)
    dtype = fit.features
    return Probe(to_tensor(weight, dtype), to_tensor(bias, dtype), C, accuracy, tuple(path))


@dataclass(frozen=True)
class Fitted:
    """A minimum of the objective, in float64."""

    weight: Array
    """[C, D]."""
    bias: Array
    """[C]."""
    converged: bool


class Problem:
    """Logistic regression on rows [N, D] with labels in 0 … C − 1.

    Raises:
        InputError: labels of one class only.
    """

    def __init__(
        self, rows: Array, labels: NDArray[np.int64], classes: int, intercept: bool = True
    ) -> None:
        """Store rows and labels; `intercept`: whether b is fitted, else it stays zero."""
        self.rows, self.classes, self.intercept = rows, classes, intercept
        self.present, self.targets = np.unique(labels, return_inverse=True)
        if len(self.present) < 2:
            raise InputError(f"labels: class {self.present[0]} only; 2 or more classes needed")

    def fit(self, C: float, max_iter: int, start: Fitted | None = None) -> Fitted:
        """Minimise from `start`, or from zero."""
        seen, width = len(self.present), self.rows.shape[1]
        theta = np.zeros((seen, width + 1))
        if start is not None:
            theta[:, :-1], theta[:, -1] = start.weight[self.present], start.bias[self.present]
        # For two classes ½‖w‖² of the one w = w₁ − w₀ is ‖W‖² of the symmetric pair (−w/2, +w/2),
        # and from zero the pair stays symmetric.
        decay = (2.0 if seen == 2 else 1.0) / (C * len(self.rows))
        found = scipy.optimize.minimize(
            self.objective,
            theta.ravel(),
            args=(decay,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iter, "maxfun": 10 * max_iter, "gtol": STEEP, "ftol": FLAT},
        )
        theta = np.asarray(found.x, dtype=np.float64).reshape(seen, width + 1)
        weight, bias = np.zeros((self.classes, width)), np.zeros(self.classes)
        weight[self.present], bias[self.present] = theta[:, :-1], theta[:, -1]
        # Status 1: a limit was met; 2, no further decrease in float64, is a minimum too.
        return Fitted(weight, bias, bool(found.status != 1))

    def objective(self, theta: Array, decay: float) -> tuple[float, Array]:
        """(1/N)·Σ CE + ½·decay·‖W‖² and its flat gradient: the objective divided by C·N."""
        theta = theta.reshape(len(self.present), -1)
        weight = theta[:, :-1]
        index = np.arange(len(self.rows))
        scores = self.rows @ weight.T + theta[:, -1]
        scores -= scipy.special.logsumexp(scores, axis=1, keepdims=True)
        loss = -scores[index, self.targets].mean() + 0.5 * decay * (weight * weight).sum()
        residual = np.exp(scores, out=scores)
        residual[index, self.targets] -= 1
        residual /= len(self.rows)
        gradient = np.empty_like(theta)
        gradient[:, :-1] = residual.T @ self.rows + decay * weight
        gradient[:, -1] = residual.sum(0) if self.intercept else 0.0
        return float(loss), gradient.ravel()


def to_array(features: Tensor) -> Array:
    """As a float64 array on the CPU."""
    array: Array = features.detach().double().cpu().numpy()
    return array


def to_tensor(array: Array, like: Tensor) -> Tensor:
    """As a tensor on the device of `like`, in its accumulation dtype."""
    return torch.from_numpy(array).to(like.device, accumulator(like.dtype))
