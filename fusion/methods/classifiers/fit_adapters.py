"""Fitted caches and adapters: Tip-Adapter, Tip-Adapter-F, CLIP-Adapter and CaFo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from fusion.logits.cosine_head import logits
from fusion.logits.head import Head
from fusion.methods.classifiers.cafo import Compat, Normalisation
from fusion.methods.classifiers.cafo import cafo as weigh_heads
from fusion.methods.classifiers.clip_adapter import Adapter, adapted
from fusion.methods.classifiers.clip_adapter import clip_adapter as learn_adapter
from fusion.methods.classifiers.grid_search import cafo_surface, tip_surface
from fusion.methods.classifiers.interface import (
    BASE,
    Embedded,
    Fit,
    TaskEmbeddings,
    class_weights,
    scalar,
    surface_of,
)
from fusion.methods.classifiers.tip_adapter import (
    affinities,
    cache_keys,
    cache_logits,
    cache_values,
)
from fusion.methods.classifiers.tip_adapter import tip_adapter as tip_adapter_logits
from fusion.methods.classifiers.tip_adapter_f import tip_adapter_f as learn_keys


def cache_of(data: TaskEmbeddings, source: str, at: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cache keys [NK, D] of fit rows, and their labels, int64 [NK]."""
    rows = data.rows(source, "fit", at)
    return cache_keys(rows.features[None]), rows.labels


def tip_adapter(
    data: TaskEmbeddings,
    *,
    features: str = BASE,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    betas: Annotated[int, Interval(ge=1)] = 200,
    largest_beta: Annotated[float, Interval(ge=0.1)] = 50.0,
    alphas: Sequence[float] | None = None,
) -> Fit:
    """Tip-Adapter: add a cache of few-shot features to the zero-shot head; no training.

    z = n(z)Wᵀ + α·exp(−β(1 − n(z)Kᵀ))V. β and α are chosen on the select rows: all β in one pass, α
    exactly (or on a grid).

    Args:
        data: embeddings, labels and head of the task.
        features: source of the embeddings of keys and queries. Default the base.
        shots: fit rows of each class in the cache. Default 16, the paper's largest; null: all.
        seed: of the drawn rows.
        betas: number of β tried, log-spaced from 0.1. Default 200, the authors' number.
        largest_beta: largest β. Default 50, the end of the widest of the authors' ranges.
        alphas: grid of α. Default: the exact optimum, from 0.

    Source: Zhang et al. 2022, arXiv:2207.09519. Deviations: one wide range of β and α for all data
    sets (the authors tuned them for each data set, on ImageNet with the test split); one view of
    each image, where the authors average ten crops.
    """
    keys, classes = cache_of(data, features, data.shots(shots, seed))
    select = data.rows(features, "select")
    near = affinities(select.features, keys)
    found = tip_surface(
        logits(select.features, data.weight), near, cache_values(classes, data.head.classes),
        select.labels, np.geomspace(0.1, largest_beta, betas).tolist(), alphas=alphas,
    )  # fmt: skip
    best = found.best
    kept = {"keys": keys, "classes": classes, "alpha": scalar(best.alpha)}
    return Fit(
        {**kept, "beta": scalar(best.value), **surface_of(found)},
        {"alpha": best.alpha, "beta": best.value},
    )


def tip_adapter_f(
    data: TaskEmbeddings,
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
    """Tip-Adapter-F: Tip-Adapter with trained keys; epoch, α and β are chosen on the select rows.

    Args:
        data: embeddings, labels and head of the task.
        features: source of the embeddings. Default the base.
        shots: fit rows of each class. Default 16; null: all.
        seed: of the drawn rows and the shuffles.
        alpha: α during training. Default 1.17, the code's for ImageNet.
        beta: β during training. Default 1, the code's.
        learning_rate: AdamW's. Default 1e-3, the code's.
        eps: AdamW's. Default 1e-4, the code's, made for float16.
        batch_size: default 256, the code's.
        epochs: default 20, the code's.

    Source: Zhang et al. 2022, arXiv:2207.09519, §3.3. Deviation: nothing is chosen on the reported
    split (the released code takes the best test epoch).
    """
    at = data.shots(shots, seed)
    keys, classes = cache_of(data, features, at)
    found = learn_keys(
        data.rows(features, "fit", at), data.rows(features, "select"), data.weight, keys,
        cache_values(classes, data.head.classes), alpha=alpha, beta=beta,
        learning_rate=learning_rate, eps=eps, batch_size=batch_size, epochs=epochs, seed=seed,
    )  # fmt: skip
    kept = {"keys": found.keys, "classes": classes, "alpha": scalar(found.alpha)}
    return Fit(
        {**kept, "beta": scalar(found.beta), **surface_of(found.surface)},
        {"alpha": found.alpha, "beta": found.beta, "epoch": float(found.epoch)},
    )


def cache_model_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    features: str = BASE, **_: object,
) -> Tensor:  # fmt: skip
    """Logits of Tip-Adapter (F): zero-shot logits plus the cache's."""
    values = cache_values(kept["classes"], head.classes)
    return tip_adapter_logits(
        embedded(features), class_weights(head), kept["keys"], values,
        alpha=float(kept["alpha"]), beta=float(kept["beta"]),
    )  # fmt: skip


def clip_adapter(
    data: TaskEmbeddings,
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
    """CLIP-Adapter: train a small residual network A on embeddings, before the zero-shot head.

    Logits are n(r·A(z) + (1 − r)·z)Wᵀ. A has two layers and is trained on few shots; the epoch is
    chosen on the select rows.

    Args:
        data: embeddings, labels and head of the task.
        features: source of the embeddings. Default the base.
        shots: fit rows of each class. Default 16; null: all.
        seed: of the drawn rows, the layers and the shuffles.
        ratio: r. Default 0.2, the code's.
        reduction: width of the embedding divided by that of the hidden layer. Default 4, the
            code's.
        learning_rate: AdamW's. Default 1e-3, ours.
        batch_size: default 256.
        epochs: default 100, ours (the authors: 200 on images).

    Source: Gao et al. 2021, arXiv:2110.04544.
    """
    found = learn_adapter(
        data.rows(features, "fit", data.shots(shots, seed)), data.rows(features, "select"),
        data.weight, ratio=ratio, reduction=reduction, learning_rate=learning_rate,
        batch_size=batch_size, epochs=epochs, seed=seed,
    )  # fmt: skip
    kept = {"down": found.adapter.down, "up": found.adapter.up, "ratio": scalar(ratio)}
    return Fit(kept, {"epoch": float(found.epoch)})


def adapter_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    features: str = BASE, **_: object,
) -> Tensor:  # fmt: skip
    """Logits of CLIP-Adapter: the zero-shot head on adapted embeddings."""
    adapter = Adapter(kept["down"], kept["up"], float(kept["ratio"]))
    return logits(adapted(embedded(features), adapter), class_weights(head))


def cafo(
    data: TaskEmbeddings,
    *,
    sources: Sequence[str] | None = None,
    shots: Annotated[int | None, Interval(ge=1)] = 16,
    seed: Annotated[int, Interval(ge=0)] = 0,
    beta: Annotated[float, Interval(ge=0)] = 1.0,
    temperatures: Annotated[int, Interval(ge=1)] = 13,
    normalisation: Normalisation = "zscore",
    compat: Compat = None,
) -> Fit:
    """CaFo: add one cache for each source, weighted by agreement with the zero-shot head.

    z₀ + α·Σ_m w_m ĉ_m. The temperature of the weights and α are chosen on the select rows, α
    exactly.

    Args:
        data: embeddings, labels and head of the task.
        sources: sources of the embeddings of the M caches. Default: the base and all experts.
        shots: fit rows of each class in each cache. Default 16; null: all.
        seed: of the drawn rows, the same for all caches.
        beta: β of all caches. Default 1, the code's.
        temperatures: number of T tried, log-spaced from 0.01 to 10; the plain mean is tried too.
            Default 13.
        normalisation: of each head over classes. Default z-scores, the code's.
        compat: `cafo`: the code's softmax, not divided by the number of classes. Default none.

    Source: Zhang et al. 2023, arXiv:2303.02151, §3.3, for M feature sets. Deviations: no generated
    images, no training of the keys; nothing is chosen on the reported split.
    """
    names = [BASE, *data.experts] if sources is None else list(sources)
    at = data.shots(shots, seed)
    kept: dict[str, Tensor] = {}
    heads = []
    for m, name in enumerate(names):
        keys, classes = cache_of(data, name, at)
        kept |= {f"keys.{m}": keys, "classes": classes}
        near = affinities(data.embedded(name, "select", None), keys)
        heads.append(cache_logits(near, cache_values(classes, data.head.classes), beta))
    select = data.rows(BASE, "select")
    tried = [*np.geomspace(0.01, 10, temperatures).tolist(), float("inf")]
    found = cafo_surface(
        logits(select.features, data.weight), torch.stack(heads), select.labels, tried,
        normalisation=normalisation, compat=compat,
    )  # fmt: skip
    best = found.best
    kept |= {"alpha": scalar(best.alpha), "temperature": scalar(best.value), **surface_of(found)}
    return Fit(kept, {"alpha": best.alpha, "temperature": best.value})


def cafo_logits(
    embedded: Embedded, head: Head, kept: Mapping[str, Tensor], experts: Sequence[str],
    sources: Sequence[str] | None = None, beta: float = 1.0,
    normalisation: Normalisation = "zscore", compat: Compat = None, **_: object,
) -> Tensor:  # fmt: skip
    """Logits of CaFo: zero-shot logits plus the weighted caches'."""
    names = [BASE, *experts] if sources is None else list(sources)
    values = cache_values(kept["classes"], head.classes)
    heads = [
        cache_logits(affinities(embedded(name), kept[f"keys.{m}"]), values, beta)
        for m, name in enumerate(names)
    ]
    return weigh_heads(
        logits(embedded(BASE), class_weights(head)), torch.stack(heads), alpha=float(kept["alpha"]),
        temperature=float(kept["temperature"]), normalisation=normalisation, compat=compat,
    )  # fmt: skip
