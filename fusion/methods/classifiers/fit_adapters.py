"""Fitted caches and adapters: Tip-Adapter (F), CLIP-Adapter, CaFo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from fusion.logits.cosine_head import logits
from fusion.methods.classifiers.cafo import Compat, Normalisation
from fusion.methods.classifiers.cafo import cafo as weigh_heads
from fusion.methods.classifiers.clip_adapter import Adapter, adapted
from fusion.methods.classifiers.clip_adapter import clip_adapter as learn_adapter
from fusion.methods.classifiers.grid_search import cafo_surface, tip_surface
from fusion.methods.classifiers.interface import BASE, Embedded, Fit, Plane, scalar, surface_of
from fusion.methods.classifiers.tip_adapter import (
    affinities,
    cache_keys,
    cache_logits,
    cache_values,
    tip_logits,
)
from fusion.methods.classifiers.tip_adapter_f import tip_adapter_f as learn_keys


def cache_of(plane: Plane, source: str, at: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys [NK, D] and their labels, int64 [NK]."""
    rows = plane.rows(source, "fit", at)
    return cache_keys(rows.features[None]), rows.labels


def tip_adapter(
    plane: Plane,
    *,
    features: str = BASE,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    betas: Annotated[int, Interval(ge=1)] = 200,
    largest_beta: Annotated[float, Interval(ge=0.1)] = 50.0,
    alphas: Sequence[float] | None = None,
) -> Fit:
    """z = n(z)Wᵀ + α·exp(−β(1 − n(z)Kᵀ))V: a cache of few shots; nothing is trained.

    β and α are chosen on the select rows: all β in one pass, α exactly (or on a grid).

    Args:
        plane: the task.
        features: whose embeddings are keys and queries.
        shots: fit rows a class in the cache. Default 16: the paper's largest; null: all.
        seed: of the drawing.
        betas: how many β are tried, log-spaced from 0.1. Default 200: the authors' number.
        largest_beta: default 50: the end of the widest of the authors' ranges.
        alphas: a grid of α. Default: the exact optimum, from 0.

    Source: Zhang et al. 2022, arXiv:2207.09519. Deviations: one wide range of β and α for all data
    sets (the authors' were tuned data set by data set, on ImageNet with the test split); one view
    an image, where the authors average ten crops.
    """
    keys, classes = cache_of(plane, features, plane.shots(shots, seed))
    select = plane.rows(features, "select")
    near = affinities(select.features, keys)
    found = tip_surface(
        logits(select.features, plane.head), near, cache_values(classes, len(plane.head)),
        select.labels, np.geomspace(0.1, largest_beta, betas).tolist(), alphas=alphas,
    )  # fmt: skip
    best = found.best
    kept = {"keys": keys, "classes": classes, "alpha": scalar(best.alpha)}
    return Fit(
        {**kept, "beta": scalar(best.value), **surface_of(found)},
        {"alpha": best.alpha, "beta": best.value},
    )


def tip_adapter_f(
    plane: Plane,
    *,
    features: str = BASE,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    alpha: Annotated[float, Interval(ge=0)] = 1.17,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    eps: Annotated[float, Interval(gt=0)] = 1e-4,
    batch_size: Annotated[int, Interval(ge=1)] = 256,
    epochs: Annotated[int, Interval(ge=0)] = 20,
) -> Fit:
    """Tip-Adapter whose keys are trained on their own images; epoch, α and β chosen on select.

    Args:
        plane: the task.
        features: whose embeddings.
        shots: fit rows a class. Default 16; null: all.
        seed: of the drawing and the shuffles.
        alpha: while learning. Default 1.17: the code's for ImageNet.
        beta: while learning. Default 1: the code's.
        learning_rate: AdamW's. Default 1e-3: the code's.
        eps: AdamW's. Default 1e-4: the code's, made for float16.
        batch_size: default 256: the code's.
        epochs: default 20: the code's.

    Source: Zhang et al. 2022, arXiv:2207.09519, §3.3. Deviation: nothing is chosen on the reported
    split (the released code takes the best test epoch).
    """
    at = plane.shots(shots, seed)
    keys, classes = cache_of(plane, features, at)
    found = learn_keys(
        plane.rows(features, "fit", at), plane.rows(features, "select"), plane.head, keys,
        cache_values(classes, len(plane.head)), alpha=alpha, beta=beta,
        learning_rate=learning_rate, eps=eps, batch_size=batch_size, epochs=epochs, seed=seed,
    )  # fmt: skip
    kept = {"keys": found.keys, "classes": classes, "alpha": scalar(found.alpha)}
    return Fit(
        {**kept, "beta": scalar(found.beta), **surface_of(found.surface)},
        {"alpha": found.alpha, "beta": found.beta, "epoch": float(found.epoch)},
    )


def cache_model_logits(
    embedded: Embedded, head: Tensor, kept: Mapping[str, Tensor], plane: Sequence[str],
    features: str = BASE, **_: object,
) -> Tensor:  # fmt: skip
    """Zero-shot logits and the cache's."""
    z = embedded(features)
    values = cache_values(kept["classes"], len(head))
    near = affinities(z, kept["keys"])
    return tip_logits(
        logits(z, head), near, values, alpha=float(kept["alpha"]), beta=float(kept["beta"])
    )


def clip_adapter(
    plane: Plane,
    *,
    features: str = BASE,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.2,
    reduction: Annotated[int, Interval(ge=1)] = 4,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-3,
    batch_size: Annotated[int, Interval(ge=1)] = 256,
    epochs: Annotated[int, Interval(ge=0)] = 100,
) -> Fit:
    """n(r·A(z) + (1 − r)·z)Wᵀ, A two small layers, trained on few shots; epoch chosen on select.

    Args:
        plane: the task.
        features: whose embeddings.
        shots: fit rows a class. Default 16; null: all.
        seed: of the drawing, the layers and the shuffles.
        ratio: r. Default 0.2: the code's.
        reduction: width of the embedding over that of the hidden layer. Default 4: the code's.
        learning_rate: default 1e-3: ours.
        batch_size: default 256.
        epochs: default 100: ours (the authors: 200 on images).

    Source: Gao et al. 2021, arXiv:2110.04544.
    """
    found = learn_adapter(
        plane.rows(features, "fit", plane.shots(shots, seed)), plane.rows(features, "select"),
        plane.head, ratio=ratio, reduction=reduction, learning_rate=learning_rate,
        batch_size=batch_size, epochs=epochs, seed=seed,
    )  # fmt: skip
    kept = {"down": found.adapter.down, "up": found.adapter.up, "ratio": scalar(ratio)}
    return Fit(kept, {"epoch": float(found.epoch)})


def adapter_logits(
    embedded: Embedded, head: Tensor, kept: Mapping[str, Tensor], plane: Sequence[str],
    features: str = BASE, **_: object,
) -> Tensor:  # fmt: skip
    """Logits of adapted embeddings."""
    adapter = Adapter(kept["down"], kept["up"], float(kept["ratio"]))
    return logits(adapted(embedded(features), adapter), head)


def cafo(
    plane: Plane,
    *,
    sources: Sequence[str] | None = None,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
    temperatures: Annotated[int, Interval(ge=1)] = 13,
    normalisation: Normalisation = "zscore",
    compat: Compat = None,
) -> Fit:
    """z₀ + α·Σ_m w_m ĉ_m: a cache a source, each weighed by its agreement with the zero-shot head.

    The temperature of the weights and α are chosen on the select rows: α exactly.

    Args:
        plane: the task.
        sources: whose embeddings make the M caches. Default: the base and all experts.
        shots: fit rows a class in each cache. Default 16; null: all.
        seed: of the drawing, the same rows for all.
        beta: of all caches. Default 1: the code's.
        temperatures: how many T are tried, log-spaced from 0.01 to 10, and the plain mean.
        normalisation: of each head over classes. Default: z-scores, the code's.
        compat: `cafo`: the code's softmax, not divided by the number of classes.

    Source: Zhang et al. 2023, arXiv:2303.02151, §3.3, for M feature sets. Deviations: no images
    made by a generator, no training of the keys; nothing is chosen on the reported split.
    """
    names = [BASE, *plane.experts] if sources is None else list(sources)
    at = plane.shots(shots, seed)
    kept: dict[str, Tensor] = {}
    heads = []
    for m, name in enumerate(names):
        keys, classes = cache_of(plane, name, at)
        kept |= {f"keys.{m}": keys, "classes": classes}
        near = affinities(plane.embedded(name, "select", None), keys)
        heads.append(cache_logits(near, cache_values(classes, len(plane.head)), beta))
    select = plane.rows(BASE, "select")
    tried = [*np.geomspace(0.01, 10, temperatures).tolist(), float("inf")]
    found = cafo_surface(
        logits(select.features, plane.head), torch.stack(heads), select.labels, tried,
        normalisation=normalisation, compat=compat,
    )  # fmt: skip
    best = found.best
    kept |= {"alpha": scalar(best.alpha), "temperature": scalar(best.value), **surface_of(found)}
    return Fit(kept, {"alpha": best.alpha, "temperature": best.value})


def cafo_logits(
    embedded: Embedded, head: Tensor, kept: Mapping[str, Tensor], plane: Sequence[str],
    sources: Sequence[str] | None = None, beta: float = 1.0,
    normalisation: Normalisation = "zscore", compat: Compat = None, **_: object,
) -> Tensor:  # fmt: skip
    """Zero-shot logits and the weighed caches'."""
    names = [BASE, *plane] if sources is None else list(sources)
    values = cache_values(kept["classes"], len(head))
    heads = [
        cache_logits(affinities(embedded(name), kept[f"keys.{m}"]), values, beta)
        for m, name in enumerate(names)
    ]
    return weigh_heads(
        logits(embedded(BASE), head), torch.stack(heads), alpha=float(kept["alpha"]),
        temperature=float(kept["temperature"]), normalisation=normalisation, compat=compat,
    )  # fmt: skip
