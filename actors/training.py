"""Fine-tuning the vision tower of a CLIP on one task, and what every training here shares.

Axes: N images, B batch, C classes, D embedding width, H × W pixels.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion import zeroshot

Advance: TypeAlias = Callable[[int, int, float], None]
"""Progress: (steps done, steps in all, loss of the last step)."""


def silent(step: int, total: int, loss: float) -> None:
    """The progress callback that reports nothing."""


def fine_tune(
    base: Path,
    images: Tensor,
    labels: Tensor,
    head: Tensor,
    out: Path,
    *,
    epochs: float = 10.0,
    batch_size: int = 64,
    learning_rate: float = 1e-5,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    clip_norm: float = 1.0,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    advance: Advance = silent,
) -> Path:
    """Fine-tune the vision tower of `base` on one task; everything else stays frozen.

    The loss is the cross-entropy against the frozen zero-shot head; AdamW, a cosine schedule after
    a linear warm-up, gradients clipped by their global norm. The result is written under a
    temporary name and renamed, so `out` is either absent or whole. Same arguments, same bits on
    the same kind of CPU.

    Args:
        base: folder of a Hugging Face CLIP (both towers).
        images: uint8 [N, 3, H, W], at the model's image size.
        labels: int64 [N], in [0, C).
        head: zero-shot head [C, D], logit scale included: logits = normalised embedding @ headᵀ.
        out: the expert's folder: `CLIPVisionModel`, with the base's image processor beside it.
        epochs: passes over the images; a fraction is rounded to whole steps.
        batch_size: images a step.
        learning_rate: AdamW's, at its highest.
        weight_decay: AdamW's, on matrices only (not on biases, norms and embeddings).
        warmup: fraction of the steps in which the learning rate rises.
        label_smoothing: share of the target spread over all classes.
        clip_norm: largest global gradient norm.
        seed: of the order of the images.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.
        device: where to train.
        advance: called after each step.

    Returns:
        `out`.
    """
    from transformers import CLIPModel

    with cpu_threads(threads), quiet():
        model = CLIPModel.from_pretrained(base).to(device).eval()
        model.requires_grad_(False)
        tower = model.vision_model.requires_grad_(True)
        data, answers, head = images.to(device), labels.to(device), head.detach().to(device)
        mean, std = pixel_statistics(base)

        def loss(rows: Tensor) -> Tensor:
            pixels = standardised(data[rows], mean, std)
            embedding = model.visual_projection(tower(pixel_values=pixels).pooler_output)
            return F.cross_entropy(
                zeroshot.logits(embedding, head), answers[rows], label_smoothing=label_smoothing
            )

        steps = max(1, round(epochs * len(images) / batch_size))
        optimise(
            loss,
            tower,
            shuffled_batches(len(images), batch_size, steps, seed),
            steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            clip_norm=clip_norm,
            advance=advance,
        )
        with staged(out) as folder:
            save_expert(base, tower, folder)
    return out


def optimise(
    loss: Callable[[Tensor], Tensor],
    module: torch.nn.Module,
    batches: Iterator[Tensor],
    steps: int,
    *,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    clip_norm: float,
    advance: Advance,
) -> None:
    """Minimise `loss(rows)` over the trainable parameters of `module` for `steps` steps.

    `batches` yields the row numbers [B] of each step.
    """
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in trainable]
    decayed = [p for n, p in trainable if p.ndim > 1 and "embedding" not in n]
    kept = [p for n, p in trainable if p.ndim <= 1 or "embedding" in n]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept},
    ]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, cosine(steps, warmup))
    for step, rows in enumerate(batches, 1):
        value = loss(rows)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        advance(step, steps, float(value.detach()))


def cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Step number -> share of the highest learning rate: a linear rise, then half a cosine.

    >>> [round(cosine(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def shuffled_batches(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Row numbers [B] of `steps` batches: each pass over `count` rows in a new order.

    A batch may span two passes, so all are equally large (all rows, where there are fewer).
    """
    rng = torch.Generator().manual_seed(seed)
    size = min(batch_size, count)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=rng)])
        yield waiting[:size]
        waiting = waiting[size:]


def standardised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] as the float32 pixels the image processor would make of them."""
    shape = (1, 3, 1, 1)
    return (images.float() / 255 - mean.to(images.device).view(shape)) / std.to(images.device).view(
        shape
    )


def pixel_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [3] a channel, from a folder's image processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    return torch.tensor(processor.image_mean), torch.tensor(processor.image_std)


def save_expert(base: Path, tower: Any, folder: Path) -> None:
    """Write a vision tower as `CLIPVisionModel.save_pretrained` does, and its image processor."""
    from transformers import CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    # Loaded anew, because a model is saved under the tensor names that it was loaded from: those
    # of the hub. The tower inside a CLIPModel would be saved under bare ones.
    model = CLIPVisionModel.from_pretrained(base)
    model.load_state_dict(tower.state_dict())
    model.save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(base).save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its own progress bars, and without its notes on unused tensors."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Torch with a fixed number of CPU threads; the caller's number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder to write in that becomes `out` when the block ends without an exception.

    A rename is atomic, so `out` is absent or whole, whenever the program is killed. Where another
    program finished the same folder first, its result stays.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        try:
            os.rename(folder, out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
