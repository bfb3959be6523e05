"""Fine-tuning the vision tower of a CLIP on one task.

Axes: N images, B batch, C classes, D embedding width, H × W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor, nn

from actors.artifacts.head_file import HeadKind
from actors.families.clip.save import pixel_statistics as pixel_statistics
from actors.families.clip.save import save_expert as save_expert
from actors.families.clip.save import standardised as standardised
from actors.families.clip.synthetic import Synthetic
from actors.families.images.loss import Classify, Objective
from actors.families.images.options import ImageOptions
from actors.training.checkpoint import STOPS, Look, blind
from actors.training.fine_tuning import run
from actors.training.optimizer_loop import Advance as Advance
from actors.training.optimizer_loop import cosine as cosine
from actors.training.optimizer_loop import cpu_threads as cpu_threads
from actors.training.optimizer_loop import optimise as optimise
from actors.training.optimizer_loop import quiet as quiet
from actors.training.optimizer_loop import shuffled_batches as shuffled_batches
from actors.training.optimizer_loop import silent as silent
from actors.training.optimizer_loop import staged as staged
from actors.training.precision import exact_products
from fusion.errors import InputError
from fusion.logits import cosine_head
from fusion.methods.soups.weight_averaging import freeze_batchnorm

Embed: TypeAlias = Callable[[Tensor], Tensor]
"""Standardised pixels float32 [B, 3, H, W] -> embeddings [B, D], not normalised."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(ImageOptions):
    """Hyper-parameters of `fine_tune`; `finetune` of a training file has these names and ranges."""

    head: HeadKind = "zero_shot"
    """Head for tuning the tower: the zero-shot head, or that of a linear probe (LP-FT, Kumar et al.
    2022, arXiv:2202.10054). The paper then trains the head with the tower, by SGD. Here the head
    stays
    frozen: all ingredients of a task share one head, so that they can be averaged and compared."""
    soft_targets: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Weight of the cross-entropy with a teacher's probabilities in the loss; the teacher is the
    base with its zero-shot head, for any `head`."""
    soft_temperature: Annotated[float, Interval(gt=0)] = 2.0
    """Divisor of the teacher's logits. Default: that of the authors' commands (their code: 4)."""
    synthetic_share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share of synthetic images in the loss, of a task that has them (`tasks.<name>.synthetic`); 1:
    real images are not trained on. Default: He et al. 2023, arXiv:2210.07574."""
    synthetic_soft_targets: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """`soft_targets` of synthetic images. Default: that of the authors' commands."""

    def objective(self) -> Objective:
        """The loss that a step minimises."""
        return replace(
            super().objective(),
            soft_targets=self.soft_targets,
            soft_temperature=self.soft_temperature,
        )


def fine_tune(
    base: Path,
    images: Tensor,
    labels: Tensor,
    zero_shot: Tensor,
    out: Path,
    options: FineTuning,
    *,
    threads: int = 1,
    device: str = "cpu",
    probe: Tensor | None = None,
    synthetic: Synthetic | None = None,
    advance: Advance = silent,
    state: Path | None = None,
    stops: Sequence[float] = STOPS,
    look: Look = blind,
) -> Path:
    """Fine-tune the vision tower of `base` on one task; everything else stays frozen.

    The loss is the cross-entropy with a frozen head. AdamW, a cosine schedule after a linear
    warm-up, gradients clipped by their global norm. The tower stays in evaluation mode. Results are
    written under a temporary name and renamed, so `out` is either missing or complete; if it
    exists, so do the requested averages. Same arguments, same bits on the same kind of CPU, also
    for a run that was killed and continued from `state`.

    Args:
        base: folder of a Hugging Face CLIP (both towers).
        images: uint8 [N, 3, H, W], at the model's image size.
        labels: int64 [N], in [0, C).
        zero_shot: head [C, D], logit scale included: logits = normalised embedding @ headᵀ.
        out: the expert's folder: `CLIPVisionModel`, with the base's image processor beside it.
        options: hyper-parameters.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.
        device: device to train on.
        probe: the probe's head [C, D], in the form of `zero_shot`; required if `head` is a probe.
        synthetic: synthetic images, beside the real ones; None: there are none.
        advance: called after each step.
        state: file in which the state of the unfinished run is saved after each of `stops`. If it
            exists, from a run with the same arguments, the run continues from it. Values that are
            read at each step may differ from then on: rates, the loss, augmentation, the seed.
        stops: fractions of the steps.
        look: called after each of `stops`, and again at the one that a run continues from.

    Returns:
        `out`.

    Raises:
        InputError: `frozen_batchnorm` for a tower without batch norm, or a missing `probe`.
    """
    from transformers import CLIPModel

    if options.head == "linear_probe" and probe is None:
        raise InputError("head: 'linear_probe': no probe is given; it is fitted beforehand")
    exact_products()
    with cpu_threads(threads), quiet():
        model = CLIPModel.from_pretrained(base).to(device).eval()
        model.requires_grad_(False)
        tower = model.vision_model.requires_grad_(True)
        if options.frozen_batchnorm and not freeze_batchnorm(tower):
            raise InputError(
                f"frozen_batchnorm: True: the vision tower of {base} has no batch norm; false"
                " allowed"
            )
        data, answers = images.to(device), labels.to(device)
        words = zero_shot.detach().to(device)
        under = words if probe is None or options.head == "zero_shot" else probe.detach().to(device)
        mean, std = pixel_statistics(base)

        def standardise(rows: Tensor) -> Tensor:
            return standardised(rows, mean, std)

        student = embedder(tower, model.visual_projection)
        other = None if synthetic is None else synthetic.to(device)
        taught = options.soft_targets or (other is not None and other.soft_targets)
        first = embedder(frozen(tower), model.visual_projection) if taught else None
        teacher = None if first is None else classifier(first, words)
        objective, logits = options.objective(), classifier(student, under)

        def seen(rows: Tensor) -> Tensor:
            with torch.no_grad():
                return student(standardise(rows.to(device)))

        def loss(step: int, rows: Tensor) -> Tensor:
            def real() -> Tensor:
                given = data[rows], answers[rows], logits, standardise, teacher
                return objective.loss(step, *given)

            if other is None:
                return real()
            size = options.batch_size
            return other.mixed(real, objective, step, size, logits, standardise, teacher)

        def passes() -> Iterator[dict[str, Tensor]]:
            return (
                {"pixel_values": standardise(part)}
                for part in torch.split(data, options.batch_size)
            )

        return run(
            tower,
            loss,
            options,
            len(images),
            out,
            lambda model, folder: save_expert(base, model, folder),
            seen,
            device=device,
            advance=advance,
            state=state,
            stops=stops,
            look=look,
            passes=passes,
        )


def embedder(tower: nn.Module, projection: nn.Module) -> Embed:
    """Standardised pixels -> embeddings, not normalised."""
    return lambda pixels: projection(tower(pixel_values=pixels).pooler_output)


def classifier(embed: Embed, head: Tensor) -> Classify:
    """Standardised pixels -> logits with a head."""
    return lambda pixels: cosine_head.logits(embed(pixels), head)


def frozen(tower: nn.Module) -> nn.Module:
    """A frozen copy."""
    return copy.deepcopy(tower).requires_grad_(False)
