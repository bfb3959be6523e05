"""Ensembles: a weighted average of the experts' logits, probabilities or features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from fusion.errors import InputError
from fusion.logits.calibration import calibrated_beta
from fusion.logits.cosine_head import normalized
from fusion.logits.head import CosineHead, Head
from fusion.methods.soups.greedy import Greedy, Subset, greedy
from fusion.methods.soups.ordering import Order, order_of
from fusion.methods.static.coefficients import number
from fusion.task_vectors.task_vectors import accumulator


def ensemble(
    embeddings: Tensor,
    head: Tensor | Head,
    *,
    weights: Sequence[float] | None = None,
    average: Literal["logits", "probabilities", "features"] = "logits",
    temperatures: Sequence[float] | None = None,
) -> Tensor:
    """Ensemble: weighted average over experts of logits, probabilities or features.

    With n the L2 normalisation, W the head and z_t the embeddings:

    * `logits`: Σ_t w_t n(z_t)Wᵀ/T_t. The head has no bias, so the normalised embeddings are
      averaged first and multiplied by the head once.
    * `probabilities`: log Σ_t w_t softmax(n(z_t)Wᵀ/T_t): log-probabilities.
    * `features`: n(Σ_t w_t z_t)Wᵀ. FusionBench averages the encoders' outputs before the visual
      projection; since the projection is linear without bias, this is the same.

    Args:
        embeddings: [T, B, D], outputs of each expert, not normalised.
        head: a cosine head, or its weight [C, D], logit scale included. For other heads each
            expert's logits `head.logits(z)` take the place of n(z)Wᵀ.
        weights: T weights, divided by their sum. Default equal, the paper's.
        average: what is averaged. Default logits, the paper's.
        temperatures: T_t > 0, one for each expert (`fitted_temperatures`). Experts trained with
            label smoothing or mixup have small logits, and otherwise less influence. Default 1, the
            paper's. Not allowed for features.

    Returns:
        Logits [B, C], in float32 (float64 where an input is).

    Raises:
        InputError: wrong length, a weight that is no finite number, weights that sum to zero,
            negative weights of probabilities, a temperature that is not above 0, temperatures of
            features.

    Source: Wortsman et al. 2022, arXiv:2203.05482, §3 (logit ensemble).

    >>> z = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two experts, one image
    >>> ensemble(z, torch.eye(2)).tolist(), ensemble(z, torch.eye(2), weights=[3, 1]).tolist()
    ([[0.5, 0.5]], [[0.75, 0.25]])
    """
    if isinstance(head, CosineHead):
        head = head.weight
    dtypes = [head.dtype] if isinstance(head, Tensor) else []
    dtype = accumulator(embeddings.dtype, *dtypes)
    embeddings, head = embeddings.to(dtype), head.to(dtype)
    shares = torch.tensor(normalised_weights(len(embeddings), weights), dtype=dtype)
    shares = shares.to(embeddings.device)
    rates = torch.tensor(inverse_temperatures(len(embeddings), temperatures), dtype=dtype)
    rates = rates.to(embeddings.device)
    used = shares.nonzero().flatten()
    if len(used) < len(shares):  # 0 times NaN is NaN: who has no weight has no say at all
        embeddings, shares, rates = embeddings[used], shares[used], rates[used]
    if average == "features":
        if temperatures is not None:
            raise InputError("temperatures: given; features have none (average: logits, say)")
        return logits_under(head, torch.einsum("t,tbd->bd", shares, embeddings))
    if average == "logits" and isinstance(head, Tensor):
        return torch.einsum("t,tbd->bd", shares * rates, normalized(embeddings)) @ head.T
    each = logits_under(head, embeddings)
    if average == "logits":
        return torch.einsum("t,tbc->bc", shares * rates, each)
    if bool((shares < 0).any()):
        raise InputError("weights: negative; probabilities need weights >= 0")
    logs = (each * rates[:, None, None]).log_softmax(-1)
    return torch.logsumexp(logs + shares.log()[:, None, None], dim=0)


def logits_under(head: Tensor | Head, output: Tensor) -> Tensor:
    """Logits [..., B, C] of outputs [..., B, D]; a tensor [C, D] is the weight of a cosine head."""
    if isinstance(head, Tensor):
        return normalized(output) @ head.T
    found = head.logits(output.reshape(-1, output.shape[-1]))
    return found.view(*output.shape[:-1], -1)


def normalised_weights(experts: int, weights: Sequence[float] | None) -> list[float]:
    """T weights divided by their sum; equal weights for None.

    Raises:
        InputError: wrong length, no finite number, a sum of zero.
    """
    if weights is None:
        return [1 / experts] * experts
    if len(weights) != experts:
        raise InputError(f"weights: {len(weights)} given; one for each of {experts} experts needed")
    values = [number("weights", weight) for weight in weights]
    total = sum(values)
    if total == 0:
        raise InputError("weights: they sum to zero; cannot be normalised")
    return [value / total for value in values]


def inverse_temperatures(experts: int, temperatures: Sequence[float] | None) -> list[float]:
    """Inverse temperatures 1/T_t of the experts; ones for None.

    Raises:
        InputError: wrong length, no number above 0.
    """
    if temperatures is None:
        return [1.0] * experts
    if len(temperatures) != experts:
        raise InputError(
            f"temperatures: {len(temperatures)} given; one for each of {experts} experts needed"
        )
    values = [number("temperatures", temperature) for temperature in temperatures]
    for value in values:
        if value <= 0:
            raise InputError(f"temperatures: {value!r}; a number > 0 needed")
    return [1 / value for value in values]


def fitted_temperatures(logits: Tensor, labels: Tensor) -> list[float]:
    """Temperature of each expert that minimises the cross-entropy on held-out labels.

    T_t = 1/β_t, where β_t in [1e-2, 1e2] minimises mean_n CE(β·z_tn, y_n). If every row is correct,
    there is no minimum, and T_t is the end of the range, 0.01.

    Args:
        logits: [T, N, C], of rows that no result is reported on.
        labels: int64 [N].

    Raises:
        InputError: shapes that do not fit, a label outside, an expert with NaN or Inf.

    Source: Guo et al. 2017, arXiv:1706.04599, §4.2 (temperature scaling).

    >>> z = torch.tensor([[[2.0, 0.0]] * 4])  # right three times of four: β·2 = ln 3
    >>> round(fitted_temperatures(z, torch.tensor([0, 0, 0, 1]))[0], 4)  # 2/ln 3
    1.8205
    """
    check_logits(logits, labels)
    for t, rows in enumerate(logits):
        if not bool(rows.isfinite().all()):
            raise InputError(f"logits: those of expert {t} are not finite; no temperature fits")
    dtype = accumulator(logits.dtype)
    return [1 / calibrated_beta(rows.to(dtype), labels) for rows in logits]


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise InputError unless logits are [T, N, C] with labels [N] in range."""
    if logits.ndim != 3 or not logits.numel() or labels.shape != logits.shape[1:2]:
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise InputError(f"logits and labels: shapes {shapes}; [T, N, C] and [N] needed")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= logits.shape[2]:
        outside = least if least < 0 else most
        raise InputError(f"labels: {outside}; 0 to {logits.shape[2] - 1} allowed")


def greedy_ensemble(
    logits: Tensor,
    labels: Tensor,
    *,
    metric: Literal["accuracy", "nll"] = "accuracy",
    average: Literal["logits", "probabilities"] = "logits",
    temperatures: Sequence[float] | None = None,
    order: Order = "validation",
    seed: int = 0,
    given: Sequence[int] | None = None,
    names: Sequence[str] = (),
    **rule: Any,
) -> Greedy:
    """Greedy ensemble: the greedy soup's selection applied to averaged logits.

    The experts of the selected subset have equal weights: pass `shares(subset, T)` as `weights` to
    `ensemble`.

    Args:
        logits: [T, N, C] of the rows used for selection. An expert with NaN or +Inf is left out and
            recorded as `failed`; experts with equal logits are copies, as in `begin`.
        labels: int64 [N].
        metric: accuracy (default, the paper's), or negative log-likelihood (scores are then −NLL).
        average: what is averaged. Default logits.
        temperatures: T_t > 0, one for each expert; logits are divided by them first. Default 1.
        order: as for `order_of`, without `angle`.
        seed: of the order `random`.
        given: of the order `given`.
        names: of the experts, which decide between equal scores.
        rule: `start`, `tie`, `min_delta`, `replacement`, `passes`, as for `begin`.

    Raises:
        InputError: shapes that do not fit, a label outside, no expert with finite logits,
            parameters that do not fit.

    Source: Wortsman et al. 2022, arXiv:2203.05482, appendix (greedy ensemble); with replacement:
    Caruana et al. 2004, ICML, who try all models at each step and take the best.
    """
    check_logits(logits, labels)
    rates, dtype = inverse_temperatures(len(logits), temperatures), accumulator(logits.dtype)
    plus = torch.logaddexp if average == "probabilities" else torch.add
    tallies: dict[Subset, Tensor] = {}

    def member(t: int) -> Tensor:
        scaled = logits[t].to(dtype) * rates[t]
        return scaled.log_softmax(-1) if average == "probabilities" else scaled

    def total(subset: Subset) -> Tensor:
        """Sum over a subset (of probabilities its log); that of the subset so far is kept, for all
        candidates add to it."""
        if len(subset) == 1:
            return member(subset[0])
        if subset[:-1] not in tallies:
            kept = total(subset[:-1])
            tallies.clear()
            tallies[subset[:-1]] = kept
        return plus(tallies[subset[:-1]], member(subset[-1]))

    def score(subset: Subset) -> float:
        found, size = total(subset), len(subset)
        mean = found - math.log(size) if average == "probabilities" else found / size
        return fitness(mean, labels, metric)

    singles = [score((t,)) for t in range(len(logits))]
    hashes = [digest(logits[t].to(dtype) * rates[t]) for t in range(len(logits))]
    asked = order_of(singles, order, seed=seed, given=given, names=names)
    return greedy(
        asked, singles, lambda subsets: [score(s) for s in subsets], hashes=hashes, **rule
    )


def fitness(logits: Tensor, labels: Tensor, metric: Literal["accuracy", "nll"]) -> float:
    """Accuracy, or −NLL, of logits [N, C]; NaN if a logit is NaN (argmax would select it)."""
    if bool(logits.isnan().any()) or (metric == "accuracy" and bool(logits.isposinf().any())):
        return math.nan
    if metric == "accuracy":
        return float((logits.argmax(-1) == labels).double().mean())
    return -float(nll_loss(logits.double().log_softmax(-1), labels))


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's content."""
    return hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def shares(subset: Sequence[int], experts: int) -> list[float]:
    """Weights of `ensemble` for a subset: how often each of T experts occurs, divided by its size.

    >>> shares((2, 0, 2, 2), 3)
    [0.25, 0.0, 0.75]
    """
    return [subset.count(t) / len(subset) for t in range(experts)]
