"""DAWE: a gate on frozen features that gives every input its own coefficients."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Learning, Shape, Unlabelled
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
    adapt_on: Unlabelled = "fit",
    density: Annotated[float, Interval(gt=0, le=1)] = 1.0,
    delta_dtype: Precision = "float32",
    squash: bool = False,
    gate: str | None = None,
    save_every: Annotated[int, Interval(ge=1)] = 50,
    gate_seed: Annotated[int, Interval(ge=0)] = 0,
) -> Learning:
    """θ(x) = θ₀ + Σ_t c_t(x) τ_t, c(x) = W₂·relu(W₁ f(x) + b₁) + b₂, f a frozen network.

    The gate is learned without labels: Adam on Σ_tasks mean_batch H(softmax(logits)), each task's
    batch through one model, that of the batch's mean coding. It is evaluated with one model a
    sample. W₂ = 0 and b₂ = `scale` at the start: step 0 is task arithmetic.

    Args:
        shape: tasks, tensors and feature width.
        extractor: the frozen network: a ResNet or CLIP of `transformers`, a sentence encoder, a
            folder or hub id; `base`: the pool's base (of text models the mean of its encoder's
            states). `fields:` before one that reads texts: it reads the columns, and not the
            prompt. Default microsoft/resnet-50: the better of the published runs; of texts `base`.
        grouping: `task`: a coefficient a task; `layer`: one a task and tensor.
        depth: of the gate, in linear layers: 2 the original's; 1; 0 a constant (AdaMerging).
        scale: λ₀, all coefficients at the start. Default 0.3: the original's.
        softmax: pass coefficients through a softmax over experts; `scale` then means nothing.
        base_weight: with `softmax`: over experts and base.
        batch_mean: train with the mean coding of a batch; false: one model a sample.
        learning_rate: Adam's. Default 1e-5: the original's.
        rate: `per_norm` divides the learning rate by E‖h‖₁, h being what the last layer reads: a
            step then moves codings alike whatever the extractor (1e-5 on ResNet features is about
            1e-3 … 1e-2 per norm). Default of texts: `per_norm`, with a `learning_rate` of 5e-3; as
            published: `plain`, 5e-6.
        steps: default 1000: the original's. 0 skips training: `gate` is used as it is.
        batch_size: images a task and step. Default 16: that of every published run.
        adapt_on: whose unlabelled images are learned from; the original: the test split
            (`report`).
        density: below 1: keep this fraction of each row of each weight's task vectors
            (FusionBench's option).
        delta_dtype: round task vectors to it.
        squash: squash images to a square of 224 pixels before the extractor's own preprocessing,
            as the original's loader does.
        gate: a gate file to start from: `recipes/dawe.safetensors` of another sweep, or the
            state dict of a published gate (its tasks must be the pool's, in their order). The
            gate of one backbone serves another: with `steps: 0` as it is.
        save_every: steps between checkpoints. Default 50: the original's.
        gate_seed: of W₁ and b₁.

    The published description (a softmax over N + 1 weights, outputs mixed, the gate fed by CLIP's
    own embedding) is not what the original code does: its codings are unconstrained, parameters
    are mixed, and a ResNet feeds the gate. The code is followed; `softmax`, `base_weight` and a
    CLIP as `extractor` are the description's, but for mixing outputs, which is `ensemble`.

    Deviations from the code: every epoch is shuffled anew; entropy and drawing are seeded; images
    are the extractor's own preprocessing unless `squash`; dead text tensors are no groups.

    Source: the original implementation (dict_fusion); FusionBench's documentation of DAWE.
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
    return Learning(
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
