"""Building the embedded text pool: draw the tasks, pretrain a small T5, fine-tune the experts.

The base sees texts with the first half of each task's words and right answers, and equally many
texts with all words and random answers: it knows half of each task and is unsure of the rest. A
base that is confidently wrong there would mislead methods that minimise entropy.

Each folder is written under a temporary name and renamed when it is complete. Drawing and
fine-tuning run in two processes of one thread each, so that the bits do not depend on the number of
cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from actors.embedded.text.tasks import DRAWINGS, Part, draw, guessed
from actors.embedded.workers import workers, write_marker
from actors.files.embedded_pool import TEXT, EmbeddedPool, default_root, folders, made_from
from actors.files.once import alone
from fusion.errors import InputError

Progress: TypeAlias = Callable[[str, float], None]
"""(what is being done, fraction of the whole build that is done)."""

PRETRAINING = 0.55
"""Share of a build's time, for the progress bar."""


@dataclass(frozen=True)
class Recipe:
    """How much is drawn and trained: part of what the bits depend on."""

    train: int = 1400
    """Texts of a task in the train split."""
    test: int = 900
    """Texts of a task in the test split: a 95 % interval of about ±2 points."""
    known: int = 1500
    """Texts of a task that the base is pretrained on with right answers; as many with random
    ones."""
    pretraining_steps: int = 320
    pretraining_rate: float = 2e-3
    steps: int = 90
    """Of fine-tuning an expert."""
    learning_rate: float = 1e-3
    """Of fine-tuning an expert."""


def build(
    root: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
) -> EmbeddedPool:
    """The embedded text pool, built where it is missing: about a minute on two cores.

    Of several processes one builds, and the others wait. An unfinished pool is completed.

    Args:
        root: the pool's folder; None: in the user's cache.
        seed: of everything drawn and trained. Same seed, same bits, on the same kind of CPU.
        progress: called with what is being done, and the fraction that is done.
        recipe: how much is drawn and trained; None: `Recipe()`.

    Raises:
        InputError: `root` holds a pool of another seed or recipe.
    """
    root = default_root(seed, TEXT) if root is None else root
    report = progress or (lambda what, fraction: None)
    with alone(root, lambda line: report(line, 0.0)):
        return build_alone(root, seed, report, recipe or Recipe())


def build_alone(root: Path, seed: int, report: Progress, recipe: Recipe) -> EmbeddedPool:
    """Build the pool; see `build`. No other process builds it meanwhile."""
    made = {"tasks": list(DRAWINGS), "seed": seed, "recipe": asdict(recipe)}
    pool = folders(root, list(DRAWINGS), TEXT)
    before = made_from(root)
    if before is not None:
        if before != made:
            raise InputError(f"{root}: holds an embedded pool made otherwise: {before}")
        return pool
    report("drawing", 0.0)
    for task, folder in pool.data.items():
        if not folder.exists():
            write_data(folder, task, seed, recipe)
    if not pool.base.exists():
        build_base(pool, seed, recipe, report)
    missing = [task for task, folder in pool.experts.items() if not folder.exists()]
    what = "fine-tuning the experts"
    report(what, PRETRAINING)
    with workers() as executor:
        running = [executor.submit(build_expert, pool, task, seed, recipe) for task in missing]
        for done, future in enumerate(as_completed(running), 1):
            share = PRETRAINING + (1 - PRETRAINING) * done / len(missing)
            report(f"{what} ({future.result()} done)", share)
    write_marker(root, made)
    report("the embedded text pool is ready", 1.0)
    return pool


def parts(task: str, seed: int, recipe: Recipe) -> tuple[Part, Part, list[Part]]:
    """Test split, train split, and texts for pretraining of a task; no text is in two of them."""
    seen: set[str] = set()
    test = draw(task, "test", recipe.test, seed, seen)
    train = draw(task, "train", recipe.train, seed, seen)
    known = draw(task, "known", recipe.known, seed, seen, known=True)
    return test, train, [known, guessed(task, recipe.known, seed, seen)]


def write_data(folder: Path, task: str, seed: int, recipe: Recipe) -> None:
    """Write a task's splits as parquet, with the classes' names beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Value

    from actors.training.optimizer_loop import staged

    drawing = DRAWINGS[task]
    test, train, _ = parts(task, seed, recipe)
    features = Features(text=Value("string"), label=ClassLabel(names=list(drawing.targets)))
    with staged(folder) as out:
        for split, part in (("train", train), ("test", test)):
            table = {"text": list(part.texts), "label": list(part.labels)}
            pq.write_table(pa.table(table, schema=features.arrow_schema), out / f"{split}.parquet")
        meta = {"classnames": list(drawing.targets)}
        (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def build_base(pool: EmbeddedPool, seed: int, recipe: Recipe, report: Progress) -> None:
    """Pretrain the base."""
    from actors.embedded.text.train import Options, pretrain

    def advance(step: int, total: int, loss: float) -> None:
        report(f"pretraining the base (loss {loss:.2f})", PRETRAINING * step / total)

    pretrain(
        {task: parts(task, seed, recipe)[2] for task in DRAWINGS},
        pool.base,
        Options(recipe.pretraining_steps, recipe.pretraining_rate, seed=seed),
        advance=advance,
    )


def build_expert(pool: EmbeddedPool, task: str, seed: int, recipe: Recipe) -> str:
    """Fine-tune one task's expert (in a worker); returns the task."""
    import numpy as np

    from actors.data.task import partition
    from actors.embedded.text.train import Options, fine_tune

    _, train, _ = parts(task, seed, recipe)
    # Experts never see the rows that sweeps select on.
    fit, _ = partition(np.array(train.labels))
    seen = Part(tuple(train.texts[i] for i in fit), tuple(train.labels[i] for i in fit))
    options = Options(recipe.steps, recipe.learning_rate, seed=seed)
    fine_tune(pool.base, task, seen, pool.experts[task], options)
    return task
