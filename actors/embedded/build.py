"""Build the embedded pool: draw the tasks, pretrain the base, fine-tune the experts.

Each folder is written under a temporary name and renamed when complete, so a build that was killed
continues with the missing folders. Drawing and fine-tuning run in two processes of one thread each.
Pretraining runs in this process, in one thread, while one of them trains the extractor. So the
bits do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from actors.embedded.tasks import DRAWINGS, Part, parts, web
from actors.embedded.workers import workers, write_marker
from actors.files.embedded_pool import (
    EmbeddedPool,
    default_root,
    folders,
    locate,
    made_from,
)
from actors.files.once import alone
from fusion.errors import InputError

# torch and transformers are imported late: they take seconds to load, and neither a finished pool
# nor a process that only draws needs them.
if TYPE_CHECKING:
    from torch import Tensor

    from actors.data.task_rows import Captioned

__all__ = ["EmbeddedPool", "Recipe", "build", "locate"]

Progress: TypeAlias = Callable[[str, float], None]
"""(what is being done, fraction of the whole build that is done)."""

DRAWING, PRETRAINING, EXPERTS = 0.08, 0.46, 0.46
"""Shares of a first build's time, for the progress bar."""


@dataclass(frozen=True)
class Recipe:
    """How much is drawn and trained; part of what the bits depend on."""

    train: int = 1400
    """Images a task in the train split (digits: what scikit-learn has)."""
    test: int = 900
    web: int = 2500
    """Images a task that the base is pretrained on."""
    skew: float = 2.5
    """Of the classes in pretraining: the k-th occurs in proportion to 1 / k^skew."""
    width: int = 160
    """Of the vision tower: a wider, shallower tower interferes less when experts are added up."""
    layers: int = 2
    pretraining_steps: int = 400
    pretraining_rate: float = 1.5e-3
    epochs: float = 8.0
    batch_size: int = 128
    learning_rate: float = 3e-4
    """A compromise. The further experts move, the more they interfere: at 1e-4 the best λ of task
    arithmetic is 0.5, here 0.3, and beyond the simple average is all there is. The less they move,
    the less sure they are: at 1e-4 their entropy on their own tasks is hardly below the base's, and
    what is learned by minimising entropies (AdaMerging, DAWE) has nothing to find."""
    extractor_steps: int = 300
    """Of the ResNet whose features gates read."""


def build(
    root: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
) -> EmbeddedPool:
    """Build the embedded pool if it is missing: about a minute on two cores.

    Returns a finished pool at once. If several processes call this, one builds and the others wait.
    An unfinished pool is completed, and so is a pool finished before pools had an extractor;
    existing parts are kept.

    Args:
        root: the pool's folder; None: in the user's cache.
        seed: of everything drawn and trained. Same seed, same bits, on the same kind of CPU.
        progress: called with the current activity and the fraction done.
        recipe: how much is drawn and trained; None: `Recipe()`.

    Raises:
        InputError: `root` holds a pool of another seed or recipe.
    """
    root = default_root(seed) if root is None else root
    tell = progress or (lambda what, fraction: None)
    with alone(root, lambda line: tell(line, 0.0)):
        return build_alone(root, seed, tell, recipe or Recipe())


def build_alone(root: Path, seed: int, tell: Progress, recipe: Recipe) -> EmbeddedPool:
    """Build the pool in one process. See `build`."""
    made = {"tasks": list(DRAWINGS), "seed": seed, "recipe": asdict(recipe)}
    pool = folders(root, list(DRAWINGS))
    before = made_from(root)
    if before is not None:
        if not agree(before, made):
            raise InputError(f"{root}: holds an embedded pool made otherwise: {before}")
        if pool.extractor.exists():
            return pool
    with workers() as executor:
        drawing = submit_corpus(executor, pool, seed, recipe)
        data = submit_data(executor, pool, seed, recipe)
        corpus = gather(drawing, tell)
        extractor = submit_extractor(executor, corpus, pool, seed, recipe)
        if not pool.base.exists():
            build_base(corpus, pool, seed, recipe, tell)
        for done in as_completed(data):
            done.result()
        build_experts(executor, pool, seed, recipe, tell)
        for done in extractor:
            tell("training the extractor", 1.0)
            done.result()
    if before is None:
        write_marker(root, made)
    tell("the embedded pool is ready", 1.0)
    return pool


def agree(before: dict[str, Any], made: dict[str, Any]) -> bool:
    """Whether a finished pool has this seed and recipe.

    The marker of an older pool has no fields for the extractor; they are ignored then.
    """
    return {**before, "recipe": {**made["recipe"], **before["recipe"]}} == made


def submit_corpus(
    executor: ProcessPoolExecutor, pool: EmbeddedPool, seed: int, recipe: Recipe
) -> dict[str, Future[Part]]:
    """Start drawing the pretraining images, task by task, unless nothing needs them any more."""
    if pool.base.exists() and pool.extractor.exists():
        return {}
    return {task: executor.submit(draw_web, task, seed, recipe) for task in DRAWINGS}


def submit_data(
    executor: ProcessPoolExecutor, pool: EmbeddedPool, seed: int, recipe: Recipe
) -> list[Future[None]]:
    """Start drawing the missing data folders, while the base is pretrained."""
    return [
        executor.submit(draw_data, folder, task, seed, recipe)
        for task, folder in pool.data.items()
        if not folder.exists()
    ]


def gather(drawing: dict[str, Future[Part]], tell: Progress) -> dict[str, Part]:
    """Wait for the pretraining images."""
    tell("drawing", 0.0)
    corpus = {}
    for done, (task, future) in enumerate(drawing.items(), 1):
        corpus[task] = future.result()
        tell("drawing", DRAWING * done / len(drawing))
    return corpus


def submit_extractor(
    executor: ProcessPoolExecutor,
    corpus: dict[str, Part],
    pool: EmbeddedPool,
    seed: int,
    recipe: Recipe,
) -> list[Future[None]]:
    """Start training the extractor, unless it exists, while the base is pretrained."""
    if pool.extractor.exists():
        return []
    return [executor.submit(make_extractor, corpus, pool.extractor, seed, recipe)]


def build_base(
    corpus: dict[str, Part], pool: EmbeddedPool, seed: int, recipe: Recipe, tell: Progress
) -> None:
    """Pretrain the base on the images drawn for it."""
    from actors.families.clip.pretrain import Sizes, pretrain

    def advance(step: int, total: int, loss: float) -> None:
        tell(f"pretraining the base (loss {loss:.2f})", DRAWING + PRETRAINING * step / total)

    pretrain(
        captioned(corpus),
        pool.base,
        sizes=Sizes(
            width=recipe.width,
            layers=recipe.layers,
            heads=recipe.width // 32,
            mlp=2 * recipe.width,
        ),
        steps=recipe.pretraining_steps,
        learning_rate=recipe.pretraining_rate,
        seed=seed,
        threads=1,
        advance=advance,
    )


def build_experts(
    executor: ProcessPoolExecutor, pool: EmbeddedPool, seed: int, recipe: Recipe, tell: Progress
) -> None:
    """Fine-tune the missing experts, two at a time."""
    missing = [task for task, folder in pool.experts.items() if not folder.exists()]
    if not missing:
        return
    what = "fine-tuning the experts"
    tell(what, 1.0 - EXPERTS)
    running = [executor.submit(make_expert, pool, task, seed, recipe) for task in missing]
    for done, future in enumerate(as_completed(running), 1):
        tell(f"{what} ({future.result()} done)", 1.0 - EXPERTS * (1 - done / len(missing)))


def draw_data(folder: Path, task: str, seed: int, recipe: Recipe) -> None:
    """Draw one task's data (in a worker)."""
    from actors.embedded import parquet
    from actors.families.clip.fine_tune import staged

    words = DRAWINGS[task]
    with staged(folder) as part:
        drawn = parts(task, seed, recipe.train, recipe.test)
        parquet.write(part, drawn, words.classnames, words.templates)


def draw_web(task: str, seed: int, recipe: Recipe) -> Part:
    """Draw one task's images for pretraining (in a worker)."""
    return web(task, seed, recipe.web, recipe.skew, recipe.train)


def make_extractor(corpus: dict[str, Part], out: Path, seed: int, recipe: Recipe) -> None:
    """Train the extractor (in a worker)."""
    from actors.embedded.extractor import train_extractor

    train_extractor(captioned(corpus), out, steps=recipe.extractor_steps, seed=seed, threads=1)


def make_expert(pool: EmbeddedPool, task: str, seed: int, recipe: Recipe) -> str:
    """Fine-tune one task's expert (in a worker); returns the task."""
    from transformers import AutoTokenizer, CLIPModel

    from actors.data.task import partition
    from actors.embedded import parquet
    from actors.families.clip.fine_tune import FineTuning, fine_tune, quiet
    from actors.families.clip.pretrain import zero_shot_head

    with quiet():
        model = CLIPModel.from_pretrained(pool.base).eval()
        tokenizer = AutoTokenizer.from_pretrained(pool.base)
    words = DRAWINGS[task]
    head = zero_shot_head(model, tokenizer, words.classnames, words.templates)
    part = parquet.read(pool.data[task], "train")
    # Experts never see the rows on which sweeps select.
    fit, _ = partition(part.labels)
    images, labels = tensors(Part(part.images[fit], part.labels[fit]))
    fine_tune(
        pool.base,
        images,
        labels,
        head,
        pool.experts[task],
        FineTuning(
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            seed=seed,
        ),
        threads=1,
    )
    return task


def captioned(corpus: dict[str, Part]) -> dict[str, Captioned]:
    """The pretraining images with their class names and templates."""
    from actors.data.task_rows import Captioned

    return {
        task: Captioned(*tensors(part), DRAWINGS[task].classnames, DRAWINGS[task].templates)
        for task, part in corpus.items()
    }


def tensors(part: Part) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] uint8 and labels [N] int64."""
    import torch

    images = torch.from_numpy(part.images).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(part.labels)
