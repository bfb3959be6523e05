"""DaWin: training-free coefficients from the entropy of the experts' predictions on each row.

Axes: M models in play, T tasks (experts), N rows, C classes, K merged models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion.errors import InputError, unknown
from fusion.logits.entropy import entropy
from fusion.methods.routed.mixtures import fit_beta, fit_dirichlet
from fusion.task_vectors.task_vectors import accumulator

Granularity: TypeAlias = Literal["domain", "cluster", "sample"]
Expertise: TypeAlias = Literal["entropy", "pseudo_soft", "pseudo_hard", "label"]
Combine: TypeAlias = Literal["weights", "select", "outputs"]


@dataclass(frozen=True)
class ExpertLogits:
    """Logits of the base and the experts for N rows of one task, from that task's head."""

    tasks: tuple[str, ...]
    experts: Tensor
    """Logits of each expert, [T, N, C]."""
    base: Tensor
    """Logits of the base, [N, C]."""
    labels: Tensor | None = None
    """int64 [N], read only with `expertise: label`; None: unknown."""
    entropies: Tensor | None = None
    """Entropies of the base and each expert, [1 + T, N], where they are not those of the logits:
    for a text-to-text model, of its first token over the whole vocabulary."""


@dataclass(frozen=True)
class Routing:
    """The merged model that each row is assigned to; or logits, if nothing is merged."""

    codings: Tensor
    """float32 [K, T, 1]: the models to merge, each assigned to some row; K = 0 if there are
    `logits`."""
    assign: Tensor
    """int64 [N]: the model of each row; empty if there are `logits`."""
    logits: Tensor | None = None
    """[N, C], if outputs are combined instead of weights."""


def dawin(
    expert_logits: ExpertLogits,
    *,
    granularity: Granularity = "domain",
    clusters: Annotated[int, Interval(ge=1)] = 3,
    expert: str | None = None,
    scale: float = 0.3,
    offset: bool = False,
    expertise: Expertise = "entropy",
    combine: Combine = "weights",
    temperature: Annotated[float, Interval(gt=0)] = 1.0,
    base_temperature: Annotated[float, Interval(gt=0)] = 1.0,
    seed: Annotated[int, Interval(ge=0)] = 0,
) -> Routing:
    """DaWin: training-free coefficients for each row, from the entropy of the models' predictions.

    The entropies are H_m(x) = H(softmax(z_m/τ_m)), in nats. With two models, the base Z and one
    expert F (if `expert` names one, or there is only one):

        λ(x) = e^{−H_F}/(e^{−H_Z} + e^{−H_F}) = σ(H_Z − H_F),      θ = θ₀ + λ·τ_F;

    for C classes, λ lies in [1/(C + 1), C/(C + 1)]. With several experts the base's logits are not
    used:

        s(x) = softmax_t(−H_t(x)),      λ_t = scale·T·s_t,      θ = θ₀ + Σ_t λ_t·τ_t.

    In H, τ_Z and τ_F are temperatures; in θ, τ_F and τ_t are task vectors.

    Args:
        expert_logits: the models' logits of the rows of one task, under its head (so the task of a
            row is taken as known).
        granularity: number of merged models. `domain` (default): one, with the mean coefficients
            over rows. `cluster`: one for each cluster of a Beta mixture of λ(x), or of a Dirichlet
            mixture of s(x), with the cluster's mean coefficients weighted by responsibility (see
            `fusion.methods.routed.mixtures`). `sample`: one for each row. `select` works row by row
            whatever this is.
        clusters: largest number of clusters, for `cluster`. Default 3, as in the released scripts.
        expert: F. Default: the only expert, or all of several.
        scale: for several experts only. Default 0.3, the paper's: T·scale is the total weight in
            task arithmetic.
        offset: for two models only: shrink λ towards a value ρ for the whole set, more strongly if
            both models are uncertain: λ = (1 − γ)·σ(H_Z − H_F) + γ·ρ, ρ = H̄_Z/(H̄_Z + H̄_F), γ =
            b/(e^{−H_Z} + e^{−H_F} + b), b = ½(CV(H_Z) + CV(H_F)), with CV the unbiased standard
            deviation divided by the mean. It equals the released (e^{−H_F} + bρ)/(e^{−H_Z} +
            e^{−H_F} + b). Default off; on in the released scripts.
        expertise: H_m(x) is by default the `entropy`. Else it is the cross-entropy of z_m (without
            temperature) to: `pseudo_soft`, the mean of softmax(z_m/τ_m) over the models;
            `pseudo_hard`, its arg-max; `label`, the true class, an ORACLE.
        combine: `weights` (default) merges. `select` takes each row's logits from the model with
            the smallest H (two models: F if H_Z > H_F, Z for a tie; several: the first of equals).
            `outputs` mixes probabilities with the weights that merging would use, without scale: (1
            − λ)·p_Z + λ·p_F, or Σ_t s_t·p_t, with p_m = softmax(z_m/τ_m); returned as
            log-probabilities.
        temperature: τ of every expert, used in entropies and mixed probabilities only. Default 1.
            The release calibrates F at 0.9733 (CLIP ViT-B/32), 1.0066 (B/16), 0.9545 (L/14).
        base_temperature: τ of the base. Default 1. The release has 0.9576, 0.96, 1.0767.
        seed: of the mixtures' starts.

    Raises:
        InputError: logits of wrong shape or not finite, an unknown expert, an offset where it is
            undefined, labels that are needed and missing or wrong.

    Defaults are the release's for several experts (one model for each data set; scale 0.3). For two
    models its scripts use `cluster` with 3 clusters, and the offset.

    Source: Oh et al., arXiv:2410.03782 (DaWin), and its released code, naver-ai/dawin. Deviations:
    the release's Dirichlet mixture ignores the number of clusters and fits T, takes the first, and
    estimates no concentration; its cluster-wise and sample-wise variants for several experts do not
    run. Left out: its ratios of maximal logits and of confidences (`maxlogit`, `expconf`,
    `expconfdiff`), where the last two read the base's logits for the expert's side too, so that λ ≈
    ½ and the published numbers are meaningless; and its pseudo-labels from a merged model.

    >>> even, sure = torch.zeros(1, 2), torch.tensor([[50.0, 0.0]])
    >>> routing = dawin(ExpertLogits(("a",), sure[None], even))  # H_Z = ln 2, H_F = 0
    >>> routing.codings.flatten().tolist(), routing.assign.tolist()  # σ(ln 2) = 2/3
    ([0.6666666865348816], [0])
    """
    check(expert_logits)
    chosen = two_models(expert_logits, expert)
    if chosen is None:
        models, temperatures = list(expert_logits.experts), [temperature] * len(expert_logits.tasks)
    else:
        models = [expert_logits.base, expert_logits.experts[chosen]]
        temperatures = [base_temperature, temperature]
    check_offset(offset, chosen, combine, len(expert_logits.base))
    if expert_logits.entropies is not None and expertise == "entropy":
        unsure = known_entropies(expert_logits.entropies, chosen, temperatures)
    else:
        unsure = uncertainties(models, temperatures, expertise, expert_logits.labels)
    if combine == "select":
        return outputs_only(expert_logits, selected(models, unsure))
    shares = shrunk(unsure) if offset else (-unsure).softmax(0)
    weights, assign = grouped(shares.T, granularity, clusters, seed, two=chosen is not None)
    if combine == "outputs":
        return outputs_only(expert_logits, mixed(models, temperatures, weights[assign]))
    return Routing(as_codings(weights, chosen, len(expert_logits.tasks), scale), assign)


def is_oracle(params: Mapping[str, Any]) -> bool:
    """Whether `dawin` with these parameters reads labels.

    >>> is_oracle({"expertise": "label"}), is_oracle({})
    (True, False)
    """
    return params.get("expertise") == "label"


def transductive(params: Mapping[str, Any]) -> bool:
    """Whether a row's result depends on the other rows, under these parameters of `dawin`.

    >>> transductive({}), transductive({"granularity": "sample"})
    (True, False)
    >>> transductive({"combine": "select"})  # row by row, at any granularity
    False
    """
    if params.get("combine") == "select":
        return False
    return params.get("granularity") != "sample" or bool(params.get("offset"))


def check(expert_logits: ExpertLogits) -> None:
    """Check shapes and finiteness of the logits.

    Raises:
        InputError: logits that do not fit together, or are not finite.
    """
    shape, base = list(expert_logits.experts.shape), list(expert_logits.base.shape)
    if len(shape) != 3 or shape[0] != len(expert_logits.tasks) or 0 in shape:
        needed = f"[{len(expert_logits.tasks)}, N, C] needed, none of them 0"
        raise InputError(f"expert_logits: experts: shape {shape}; {needed}")
    if base != shape[1:]:
        raise InputError(f"expert_logits: base: shape {base}; {shape[1:]} needed, as the experts'")
    for name, logits in (("experts", expert_logits.experts), ("base", expert_logits.base)):
        if not bool(logits.isfinite().all()):
            raise InputError(
                f"expert_logits: {name}: logits that are not finite; finite ones needed"
            )


def two_models(expert_logits: ExpertLogits, expert: str | None) -> int | None:
    """Index of the expert F; None if several experts are combined.

    Raises:
        InputError: an unknown expert.
    """
    if expert is None:
        return 0 if len(expert_logits.tasks) == 1 else None
    if expert not in expert_logits.tasks:
        raise InputError(f"dawin: expert: {unknown('expert', expert, expert_logits.tasks)}")
    return expert_logits.tasks.index(expert)


def check_offset(offset: bool, chosen: int | None, combine: Combine, rows: int) -> None:
    """Raise InputError if an offset is undefined, or would have no effect."""
    if not offset:
        return
    if chosen is None:
        raise InputError("dawin: offset: True; only False allowed with several experts: name one")
    if combine == "select":
        raise InputError("dawin: offset: True; only False allowed with combine 'select'")
    if rows < 2:
        raise InputError(f"dawin: offset: True with {rows} row; a deviation over rows needs 2")


def known_entropies(entropies: Tensor, chosen: int | None, temperatures: Sequence[float]) -> Tensor:
    """H [M, N] in float64, of the models in play, where the evidence has entropies."""
    if other := next((each for each in temperatures if each != 1), None):
        raise InputError(
            f"dawin: temperature: {other}; 1 allowed where entropies are not those of the answers'"
            " logits"
        )
    return (entropies[1:] if chosen is None else entropies[[0, chosen + 1]]).double()


def uncertainties(
    models: Sequence[Tensor],
    temperatures: Sequence[float],
    expertise: Expertise,
    labels: Tensor | None,
) -> Tensor:
    """Uncertainty H [M, N] in float64: entropies, or cross-entropies to (pseudo-)labels."""
    dtype = accumulator(*(logits.dtype for logits in models))
    if expertise == "entropy":
        pairs = zip(models, temperatures, strict=True)
        return torch.stack([entropy(logits.to(dtype) / tau) for logits, tau in pairs]).double()
    if expertise == "label":
        target = true_classes(labels, models[0])
    else:
        target = torch.zeros_like(models[0], dtype=dtype)
        for logits, tau in zip(models, temperatures, strict=True):
            target += (logits.to(dtype) / tau).softmax(-1) / len(models)
        if expertise == "pseudo_hard":
            target = target.argmax(-1)
    losses = [cross_entropy(logits.to(dtype), target, reduction="none") for logits in models]
    return torch.stack(losses).double()


def true_classes(labels: Tensor | None, logits: Tensor) -> Tensor:
    """The labels [N], checked against the logits [N, C].

    Raises:
        InputError: no labels, a wrong shape or dtype, a label out of range.
    """
    rows, classes = logits.shape
    if labels is None:
        raise InputError("dawin: expertise: 'label' needs the expert_logits's labels; none given")
    if labels.shape != (rows,) or labels.dtype != torch.int64:
        found = f"{labels.dtype} {list(labels.shape)}".removeprefix("torch.")
        raise InputError(f"expert_logits: labels: {found}; int64 [{rows}] needed")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise InputError(
            f"expert_logits: labels: {int(wrong[0])}; int in [0, {classes - 1}] allowed"
        )
    return labels.to(logits.device)


def shrunk(unsure: Tensor) -> Tensor:
    """Weights (1 − λ, λ) [2, N] from (H_Z, H_F) [2, N], with the offset."""
    plain, means = (-unsure).softmax(0)[1], unsure.mean(1)
    # A model that is sure of every row varies by 0 of 0: its CV is 0.
    spread = unsure.std(1) / means.clamp_min(torch.finfo(means.dtype).tiny)
    offset, prior = spread.mean(), means[0] / means.sum()
    if float(offset) == 0:  # γ = 0, even where both exponentials are 0, or no prior is defined
        return torch.stack([1 - plain, plain])
    gamma = offset / ((-unsure).exp().sum(0) + offset)
    shares = (1 - gamma) * plain + gamma * prior
    return torch.stack([1 - shares, shares])


def grouped(
    shares: Tensor, granularity: Granularity, clusters: int, seed: int, *, two: bool
) -> tuple[Tensor, Tensor]:
    """Weights [K, M] of K merged models and the model of each row [N], from weights [N, M]."""
    rows = torch.arange(len(shares), device=shares.device)
    if granularity == "sample":
        return shares, rows
    if granularity == "domain":
        return shares.mean(0, keepdim=True), torch.zeros_like(rows)
    if two:
        fit = fit_beta(shares[:, 1], clusters, seed)
        weights = torch.cat([1 - fit.means, fit.means], dim=1)
    else:
        fit = fit_dirichlet(shares, clusters, seed)
        weights = fit.means
    used, assign = torch.unique(
        fit.assign, return_inverse=True
    )  # a model without a row: not merged
    return weights[used].to(shares.device), assign.to(shares.device)


def as_codings(weights: Tensor, chosen: int | None, tasks: int, scale: float) -> Tensor:
    """Codings [K, T, 1] from weights [K, M]."""
    if chosen is None:
        return (scale * tasks * weights).float().unsqueeze(-1)
    codings = weights.new_zeros(len(weights), tasks, 1, dtype=torch.float32)
    codings[:, chosen, 0] = weights[:, 1].float()
    return codings


def selected(models: Sequence[Tensor], unsure: Tensor) -> Tensor:
    """Logits [N, C] of each row from the model with the smallest H, the first of equals."""
    best = unsure.argmin(0)
    dtype = torch.promote_types(models[0].dtype, models[-1].dtype)
    logits = models[0].to(dtype, copy=True)
    for index, other in enumerate(models):
        logits[best == index] = other[best == index].to(dtype)
    return logits


def mixed(models: Sequence[Tensor], temperatures: Sequence[float], weights: Tensor) -> Tensor:
    """Log of mixed probabilities, log Σ_m w_m·softmax(z_m/τ_m) [N, C], for weights [N, M]."""
    dtype = accumulator(*(logits.dtype for logits in models))
    terms = [
        (logits.to(dtype) / tau).log_softmax(-1) + weight.log().to(dtype)[:, None]
        for logits, tau, weight in zip(models, temperatures, weights.T, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


def outputs_only(expert_logits: ExpertLogits, logits: Tensor) -> Routing:
    """A routing that contains logits and merges nothing."""
    none = torch.zeros(0, dtype=torch.int64, device=logits.device)
    codings = torch.zeros(0, len(expert_logits.tasks), 1, device=logits.device)
    return Routing(codings, none, logits)
