"""Fitted heads and ensembles: greedy ensemble, linear probe, and WiSE-FT of the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.logits.cosine_head import normalized
from fusion.logits.exact_alpha import exact_alpha, segment
from fusion.logits.head import Head
from fusion.methods.classifiers.ensemble import ensemble, fitted_temperatures, shares
from fusion.methods.classifiers.ensemble import greedy_ensemble as choose_members
from fusion.methods.classifiers.interface import (
    BASE,
    Embedded,
    Fit,
    TaskEmbeddings,
    class_weights,
    curve_of,
    scalar,
)
from fusion.methods.classifiers.linear_probe import Convention
from fusion.methods.classifiers.linear_probe import linear_probe as fit_probe
from fusion.methods.soups.greedy import Tie

FAILED = "failed"
"""Key of the number of experts that were left out because their logits are not finite."""

DRAWN = tuple(j / 100 for j in range(101))
"""Values of α at which accuracy is evaluated for plots."""


def greedy_ensemble(
    data: TaskEmbeddings,
    *,
    metric: Literal["accuracy", "nll"] = "accuracy",
    average: Literal["logits", "probabilities"] = "logits",
    calibrated: bool = False,
    order: Literal["validation", "random"] = "validation",
    seed: Annotated[int, Interval(ge=0)] = 0,
    tie: Tie = "ge",
    min_delta: Annotated[float, Interval(ge=0)] = 0.0,
    replacement: bool = False,
) -> Fit:
    """Greedy ensemble: select the experts whose averaged logits are ensembled, for each task.

    It applies the greedy soup's selection to logits, those of any head: of models that score
    answers, the answers' log-probabilities.

    Args:
        data: embeddings, labels and head of the task.
        metric: score on the select rows that must not fall. Default accuracy, the paper's.
        average: what is averaged. Default logits, the paper's.
        calibrated: first divide each expert's logits by a temperature fitted on the select rows,
            since models trained with mixup or label smoothing have smaller logits and less
            influence. Default false.
        order: as for `greedy_soup`.
        seed: of the random order.
        tie: as for `greedy_soup`.
        min_delta: as for `greedy_soup`.
        replacement: an expert may be taken again, and then has more weight (Caruana et al. 2004).
            Default false.

    Source: Wortsman et al. 2022, arXiv:2203.05482, §3 and appendix (greedy ensemble).
    """
    labels = data.labels("select")
    outputs = [data.embedded(each, "select", None) for each in data.experts]
    z = torch.stack([data.head.to(output.dtype).logits(output) for output in outputs])
    rates = fitted_temperatures(z, labels) if calibrated else [1.0] * len(z)
    found = choose_members(
        z, labels, metric=metric, average=average, temperatures=rates, order=order, seed=seed,
        tie=tie, min_delta=min_delta, replacement=replacement, names=data.experts,
    )  # fmt: skip
    weights = torch.tensor(shares(found.subset, len(z)), dtype=torch.float64)
    failed = {FAILED: float(len(found.failed))} if found.failed else {}
    return Fit(
        {"weights": weights, "temperatures": torch.tensor(rates, dtype=torch.float64)},
        {"experts": float((weights > 0).sum()), **failed},
    )


def ensemble_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    average: Literal["logits", "probabilities"] = "logits", **_: object,
) -> Tensor:  # fmt: skip
    """Logits of the selected, weighted ensemble."""
    stack = torch.stack([embedded(each) for each in experts])
    return ensemble(
        stack, head, weights=kept["weights"].tolist(), average=average,
        temperatures=kept["temperatures"].tolist(),
    )  # fmt: skip


def linear_probe(
    data: TaskEmbeddings,
    *,
    features: str = BASE,
    convention: Convention = "unnormalised",
    C: Annotated[float, Interval(gt=0)] = 0.316,
    shots: Annotated[int | None, Interval(ge=1)] = None,
    seed: Annotated[int, Interval(ge=0)] = 0,
    max_iter: Annotated[int, Interval(ge=1)] = 1000,
) -> Fit:
    """Linear probe: multinomial logistic regression on frozen embeddings, min C·Σ CE + ½‖W‖².

    Args:
        data: embeddings, labels and head of the task.
        features: source of the embeddings: `pretrained` (default), or an expert's name.
        convention: `unnormalised` (default): OpenAI's; `normalised`: as for zero-shot heads.
        C: inverse strength of the penalty. Default 0.316, OpenAI's for CIFAR-100; search it.
        shots: fit rows of each class, drawn by `seed`. Default: all.
        seed: of the drawn rows.
        max_iter: of L-BFGS. Default 1000.

    Source: Radford et al. 2021, arXiv:2103.00020, and its repository's example.
    """
    rows = data.rows(features, "fit", data.shots(shots, seed))
    weight, bias = fit_probe(
        rows.features, rows.labels, convention=convention, C=C, max_iter=max_iter,
        classes=data.head.classes,
    )  # fmt: skip
    return Fit({"weight": weight, "bias": bias})


def probe_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    features: str = BASE, convention: Convention = "unnormalised", **_: object,
) -> Tensor:  # fmt: skip
    """Logits of the probe, xWᵀ + b."""
    x = embedded(features)
    x = x if convention == "unnormalised" else normalized(x)
    return x @ kept["weight"].T.to(x.dtype) + kept["bias"].to(x.dtype)


def wise_ft_linear(
    data: TaskEmbeddings,
    *,
    features: str = BASE,
    alpha: Annotated[float | None, Interval(ge=0, le=1)] = None,
    C: Annotated[float, Interval(gt=0)] = 100.0,
    shots: Annotated[int | None, Interval(ge=1)] = None,
    seed: Annotated[int, Interval(ge=0)] = 0,
    max_iter: Annotated[int, Interval(ge=1)] = 1000,
) -> Fit:
    """WiSE-FT of the head: (1 − α)·zero-shot + α·probe, for weights and logits alike.

    Args:
        data: embeddings, labels and head of the task.
        features: source of the embeddings, as for `linear_probe`.
        alpha: α, the weight of the probe. Default: the exact best on the select rows, the middle of
            the widest plateau of accuracy over [0, 1].
        C: of the probe, on normalised embeddings, which are short. Default 100, ours.
        shots: as for `linear_probe`.
        seed: as for `linear_probe`.
        max_iter: as for `linear_probe`.

    Source: Wortsman et al. 2022, arXiv:2109.01903, §3 (linear classifier). The exact α is ours.
    Deviation: the probe is logistic regression from zero; the paper trains from the zero-shot head.
    """
    rows = data.rows(features, "fit", data.shots(shots, seed))
    weight, bias = fit_probe(
        rows.features, rows.labels, convention="normalised", C=C, max_iter=max_iter,
        classes=data.head.classes,
    )  # fmt: skip
    kept = {"weight": weight, "bias": bias}
    if alpha is not None:
        return Fit({**kept, "alpha": scalar(alpha)})
    select = data.rows(features, "select")
    unit = normalized(select.features)
    first, second = segment(unit @ data.weight.T, unit @ weight.T.to(unit.dtype) + bias)
    best = exact_alpha(first, second, select.labels, at=DRAWN)
    chosen = {"alpha": best.middle, "alpha/low": best.low, "alpha/high": best.high}
    return Fit({**kept, "alpha": scalar(best.middle), **curve_of(best, DRAWN)}, chosen)


def wise_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    features: str = BASE, **_: object,
) -> Tensor:  # fmt: skip
    """Logits of the interpolated head, n(z)((1 − α)W₀ + αW₁)ᵀ + αb."""
    unit, alpha = normalized(embedded(features)), float(kept["alpha"])
    weight = (1 - alpha) * class_weights(head).to(unit.dtype) + alpha * kept["weight"].to(
        unit.dtype
    )
    return unit @ weight.T + alpha * kept["bias"].to(unit.dtype)
