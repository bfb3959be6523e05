"""Ensembles: experts fused by what they say of an image, not by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.state import accumulator
from fusion.weights import number
from fusion.zeroshot import normalized


def ensemble(
    embeddings: Tensor,
    head: Tensor,
    *,
    weights: Sequence[float] | None = None,
    average: Literal["logits", "probabilities", "features"] = "logits",
) -> Tensor:
    """Weighted average over experts; n is L2 normalisation, W the head, z_t the embeddings.

    * `logits`: Σ_t w_t n(z_t)Wᵀ. The head has no bias, so the normalised embeddings are averaged
      first and multiplied by the head once.
    * `probabilities`: log Σ_t w_t softmax(n(z_t)Wᵀ): log-probabilities.
    * `features`: n(Σ_t w_t z_t)Wᵀ. FusionBench averages the encoders' outputs before the visual
      projection; the projection is linear and has no bias, so this is the same.

    Args:
        embeddings: [T, B, D], projected image embeddings of each expert, not normalised.
        head: [C, D], zero-shot head, logit scale included.
        weights: T weights, divided by their sum. Default equal, the paper's.
        average: what is averaged. Default logits, the paper's.

    Returns:
        Logits [B, C], in float32 (float64 where an input is).

    Raises:
        InputError: wrong length, a weight that is no finite number, weights that sum to zero,
            negative weights of probabilities.

    Source: Wortsman et al. 2022, arXiv:2203.05482, §3 (logit ensemble).

    >>> z = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two experts, one image
    >>> ensemble(z, torch.eye(2)).tolist(), ensemble(z, torch.eye(2), weights=[3, 1]).tolist()
    ([[0.5, 0.5]], [[0.75, 0.25]])
    """
    dtype = accumulator(embeddings.dtype, head.dtype)
    embeddings, head = embeddings.to(dtype), head.to(dtype)
    shares = torch.tensor(normalised_weights(len(embeddings), weights), dtype=dtype)
    shares = shares.to(embeddings.device)
    if average == "features":
        return normalized(torch.einsum("t,tbd->bd", shares, embeddings)) @ head.T
    if average == "logits":
        return torch.einsum("t,tbd->bd", shares, normalized(embeddings)) @ head.T
    if bool((shares < 0).any()):
        raise InputError("weights: negative; probabilities need weights >= 0")
    logs = (normalized(embeddings) @ head.T).log_softmax(-1)
    return torch.logsumexp(logs + shares.log()[:, None, None], dim=0)


def normalised_weights(experts: int, weights: Sequence[float] | None) -> list[float]:
    """T weights divided by their sum; equal ones for None."""
    if weights is None:
        return [1 / experts] * experts
    if len(weights) != experts:
        raise InputError(f"weights: {len(weights)} given; one for each of {experts} experts needed")
    values = [number("weights", weight) for weight in weights]
    total = sum(values)
    if total == 0:
        raise InputError("weights: they sum to zero; cannot be normalised")
    return [value / total for value in values]
