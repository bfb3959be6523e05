"""DAWE: a gate on frozen features computes merging coefficients for each input."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Shape, TrainingPlan, UnlabelledSplit
from fusion.task_vectors.sparsify import Precision, Trim


def dawe(
    shape: Shape,
    *,
    extractor: str = "microsoft/resnet-50",
    grouping: Literal["task", "layer"] = "task",
    depth: Annotated[int, Interval(ge=0, le=2)] = 2,
    scale: float = 0.3,
    softmax: bool = False,
    base_weight: bool = False,
    batch_mean: bool = True,
    learning_rate: Annotated[float, Interval(gt=0)] = 1e-5,
    rate: Literal["plain", "per_norm"] = "plain",
    steps: Annotated[int, Interval(ge=0)] = 1000,
    batch_size: Annotated[int, Interval(ge=1)] = 16,
    adapt_on: UnlabelledSplit = "fit",
    density: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    delta_dtype: Precision = "float32",
    squash: bool = False,
    gate: str | None = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
    gate_seed: Annotated[int, Interval(ge=0)] = 0,
) -> TrainingPlan:
    """DAWE: a gate on frozen features computes the merging coefficients of each input.

    θ(x) = θ₀ + Σ_t c_t(x) τ_t with c(x) = W₂·relu(W₁ f(x) + b₁) + b₂, f a frozen network. The gate
    is trained without labels: Adam on Σ_tasks mean_batch H(softmax(logits)), where each task's
    batch goes through one model, merged with the batch's mean coding. It is evaluated with one
    model for each sample. Initially W₂ = 0 and b₂ = `scale`, so step 0 is task arithmetic.

    Args:
        shape: tasks, tensors and feature width.
        extractor: the frozen network: a ResNet or CLIP of `transformers` or a sentence encoder, as
            a folder or hub id; or `base`, the pool's base (for text models the mean of its
            encoder's states). With the prefix `fields:` a text encoder reads the columns instead of
            the prompt. Default microsoft/resnet-50, the better one of the published runs; for texts
            `base`.
        grouping: `task` (default): a coefficient for each task; `layer`: one for each task and
            tensor.
        depth: number of linear layers of the gate: 2 (default, the original's), 1, or 0, a constant
            (AdaMerging).
        scale: λ₀, initial value of all coefficients. Default 0.3, the original's.
        softmax: pass coefficients through a softmax over experts; `scale` then has no effect.
            Default false.
        base_weight: with `softmax`: softmax over experts and base. Default false.
        batch_mean: train with the mean coding of a batch (default); false: with one model for each
            sample.
        learning_rate: Adam's. Default 1e-5, the original's.
        rate: `per_norm` divides the learning rate by E‖h‖₁, where h is the input of the last layer.
            A step then changes codings equally for all extractors (1e-5 on ResNet features is about
            1e-3 … 1e-2 per norm). Default `plain`; for texts `per_norm` with a `learning_rate` of
            5e-3 (published: `plain`, 5e-6).
        steps: default 1000, the original's. 0 skips training, and `gate` is used as it is.
        batch_size: images of each task in a step. Default 16, that of every published run.
        adapt_on: split of the unlabelled images. Default `fit`; the original uses the test split
            (`report`).
        density: below 1: keep this fraction of largest entries of each row of each weight's task
            vectors (FusionBench's option). Default 1.
        delta_dtype: dtype that task vectors are rounded to. Default float32.
        squash: resize images to a square of 224 pixels before the extractor's own preprocessing, as
            the original's loader does. Default false.
        gate: gate file to start from: `recipes/dawe.safetensors` of another sweep, or the state
            dict of a published gate (its tasks must be the pool's, in their order). A gate trained
            with one backbone can be used with another, with `steps: 0` unchanged.
        save_every: steps between checkpoints. Default 50, the original's.
        gate_seed: seed of W₁ and b₁.

    The published description (a softmax over N + 1 weights, outputs are mixed, the gate reads
    CLIP's own embedding) differs from the original code: its codings are unconstrained, parameters
    are mixed, and a ResNet feeds the gate. The code is followed here. `softmax`, `base_weight` and
    a CLIP as `extractor` follow the description, except for mixing outputs, which is `ensemble`.

    Source: the original implementation (dict_fusion); FusionBench's documentation of DAWE.
    Deviations from the code: every epoch is shuffled anew; entropy without epsilon; draws are
    seeded; images get the extractor's own preprocessing unless `squash`; unused text tensors are no
    groups.
    """
    groups = len(shape.groups) if grouping == "layer" else 1
    router = Gate(
        shape.width,
        len(shape.tasks),
        groups,
        depth=depth,
        scale=scale,
        softmax=softmax,
        base_weight=base_weight,
        seed=gate_seed,
    )
    return TrainingPlan(
        router=router,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        adapt_on=adapt_on,
        save_every=save_every,
        extractor=extractor,
        squash=squash,
        batch_mean=batch_mean,
        rate_per_norm=rate == "per_norm",
        gate=gate,
        trim=Trim(density, dtype=delta_dtype),
    )
