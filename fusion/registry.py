"""The methods: one visible table of honest kinds, whose signatures are their schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, TypeAlias

from torch import Tensor

from fusion.adamerging import adamerging
from fusion.arithmetic import task_arithmetic
from fusion.average import simple_average, weighted_average, wise_ft
from fusion.dawe import dawe
from fusion.dawin import Evidence, Routing, dawin
from fusion.ensemble import ensemble
from fusion.learning import Learning, Shape
from fusion.parameters import Parameter, bind, parameters
from fusion.state import TaskVectors
from fusion.survey import Survey, run_surveys
from fusion.ties import ties, ties_survey


@dataclass(frozen=True)
class Row:
    """What every row of the table says of its rule."""

    rule: Callable[..., Any]
    paper: str
    defaults: str
    """Where the default hyper-parameters come from."""

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, as the rule's signature states them."""
        return parameters(self.rule, hidden=("survey",))

    @property
    def doc(self) -> str:
        """The rule's docstring."""
        return self.rule.__doc__ or ""

    def bound(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of a call: `params`, checked, over the defaults.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return bind(self.rule.__name__, self.parameters, params)


@dataclass(frozen=True)
class Static(Row):
    """Weights -> weights: `rule(vectors, *, …) -> StateDict`."""

    rule: Callable[Concatenate[TaskVectors, ...], dict[str, Tensor]]
    survey: Callable[Concatenate[TaskVectors, ...], Survey[Any]] | None = None
    """Given the same parameters as the rule; its result is the rule's argument `survey`."""
    kind = "static"
    needs = "nothing but weights"

    @property
    def scope(self) -> str:
        """`tensor`: works tensor by tensor; `model`: surveys the whole model first."""
        return "model" if self.survey else "tensor"

    def merge(self, vectors: TaskVectors, **params: Any) -> dict[str, Tensor]:
        """The merged state dict of a whole model.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.merge_shards([vectors], **params)[0]

    def merge_shards(self, shards: Sequence[TaskVectors], **params: Any) -> list[dict[str, Tensor]]:
        """The merged state dict of each shard of one model; equal to the whole's, to the bit."""
        result = None
        if self.survey is not None:
            result = run_surveys([self.start_survey(shard, params) for shard in shards])
        return [self.merge_surveyed(shard, result, params) for shard in shards]

    def start_survey(self, vectors: TaskVectors, params: Mapping[str, Any]) -> Survey[Any]:
        """The survey of one shard, not yet begun; of a method that has one."""
        assert self.survey is not None
        return self.survey(vectors, **self.bound(params))

    def merge_surveyed(
        self, vectors: TaskVectors, result: Any, params: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The merged state dict of one shard, given the result of the surveys of all."""
        found = {} if self.survey is None else {"survey": result}
        return self.rule(vectors, **found, **self.bound(params))


@dataclass(frozen=True)
class LogitSpace(Row):
    """Expert embeddings [T, B, D] and a zero-shot head [C, D] -> logits [B, C]."""

    rule: Callable[Concatenate[Tensor, Tensor, ...], Tensor]
    kind = "logits"
    needs = "the experts' embeddings of each image"
    scope = "model"

    def fuse(self, embeddings: Tensor, head: Tensor, **params: Any) -> Tensor:
        """Logits [B, C] of the fused classifier.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(embeddings, head, **self.bound(params))


@dataclass(frozen=True)
class Adaptive(Row):
    """Unlabelled batches -> one coding: `rule(shape, *, …) -> Learning`."""

    rule: Callable[Concatenate[Shape, ...], Learning]
    kind = "adaptive"
    needs = "unlabelled images of each task"
    scope = "model"

    def learning(self, shape: Shape, **params: Any) -> Learning:
        """What is learned, and how.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return self.rule(shape, **self.bound(params))


@dataclass(frozen=True)
class Gated(Adaptive):
    """Unlabelled batches -> a router, which gives each sample a coding from its features."""

    kind = "routed"
    needs = "unlabelled images of each task, and a frozen network's features of every image"


@dataclass(frozen=True)
class Routed(Row):
    """The experts' logits of a task's rows -> codings: `rule(evidence, *, …) -> Routing`."""

    rule: Callable[Concatenate[Evidence, ...], Routing]
    kind = "routed"
    needs = "the experts' embeddings of each image"
    scope = "model"

    def route(self, evidence: Evidence, **params: Any) -> Routing:
        """Which rows go to which merged model.

        Raises:
            InputError: unknown, missing or wrong parameters; what the rule refuses.
        """
        return self.rule(evidence, **self.bound(params))


Method: TypeAlias = Static | LogitSpace | Adaptive | Routed


METHODS: Mapping[str, Method] = {
    "simple_average": Static(
        simple_average,
        paper="Wortsman et al. 2022, arXiv:2203.05482 (uniform soup)",
        defaults="no parameters",
    ),
    "weighted_average": Static(
        weighted_average,
        paper="Matena & Raffel 2022, arXiv:2111.09832 §2 (isotropic merging)",
        defaults="equal weights, normalised: FusionBench",
    ),
    "task_arithmetic": Static(
        task_arithmetic,
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        defaults="scale 0.3: the paper's for eight tasks, FusionBench",
    ),
    "ties": Static(
        ties,
        paper="Yadav et al. 2023, arXiv:2306.01708",
        defaults="density 0.2, mean, scale 1: the paper's",
        survey=ties_survey,
    ),
    "wise_ft": Static(
        wise_ft,
        paper="Wortsman et al. 2022, arXiv:2109.01903",
        defaults="alpha 0.5: the paper's when there is no validation signal",
    ),
    "adamerging": Adaptive(
        adamerging,
        paper="Yang et al. 2024, arXiv:2310.02575",
        defaults="λ 0.3, Adam 1e-3, batch 16: the paper's; 1000 steps: FusionBench",
    ),
    "dawe": Gated(
        dawe,
        paper="Tang et al., data-adaptive weight-ensembling (dict_fusion)",
        defaults="λ₀ 0.3, Adam 1e-5, batch 16, 1000 steps, ResNet-50: the published runs'",
    ),
    "dawin": Routed(
        dawin,
        paper="Oh et al. 2025, arXiv:2410.03782",
        defaults="domain-wise, scale 0.3: the released code's for several experts",
    ),
    "ensemble": LogitSpace(
        ensemble,
        paper="Wortsman et al. 2022, arXiv:2203.05482 §3 (logit ensemble)",
        defaults="equal weights over logits: the paper's",
    ),
}
"""Every method there is, by name."""
