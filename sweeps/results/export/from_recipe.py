"""Export a row of a sweep: the model of its recipe, with heads, tasks and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.artifacts.recipe import BASE, Recipe
from actors.checkpoints.checkpoint import content_hash
from actors.experts.recipe import (
    learned_beta,
    learned_coding,
    merged,
    of_task,
    rebuilt,
    results_dtype,
)
from actors.files.documents import read_bytes
from actors.files.paths import inside
from actors.pool.pool import Pool, open_pool
from actors.pool.running import averaged, batch_norm
from actors.pool.vectors_on_disk import filed_vectors
from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.console.progress import Doing, silently
from sweeps.results.export.model_card import CARD, Card, write_card
from sweeps.results.export.model_folder import check_new, new_folder, write_model
from sweeps.results.export.sweep_facts import SweepFacts, facts_of
from sweeps.results.export.task_files import write_tasks
from sweeps.results.partial_comparison import finished_model
from sweeps.results.recipe import (
    RecipeFile,
    check_beside,
    check_single,
    known_running,
    known_statistics,
    learned_data,
    load,
)


def export(path: Path, out: Path, doing: Doing = silently) -> str | None:
    """Rebuild a recipe's model as a folder that `transformers` loads: the base with its fused
    tensors replaced.

    Beside the weights: tokenizer or image processor, `tasks.json`, `heads.safetensors` where the
    model needs heads, and a model card. A method that makes one model a task gives one folder a
    task, in `out`.

    Args:
        path: the recipe.
        out: the new folder.
        doing: shows the phases.

    Returns:
        What the folder lacks, in a line: tasks, where the sweep's files or data are gone.

    Raises:
        InputError: `out` is there already; an ingredient changed since; a recipe without a model,
            or the place of one that a finished model would have.
    """
    if not path.exists() and (source := finished_model(path.parent.parent, path.stem)):
        raise InputError(f"{path}: {path.stem} is a finished model already: {source}")
    recipe = load(path)
    check_new(out)
    check_single(recipe, path)
    with doing("reading base and experts to check that they are unchanged"):
        pool = known_pool(recipe, path)
    with doing("reading where the tasks' data are"):
        facts, lacking = facts_of(path, recipe.method, pool)
    with doing("merging, writing the folder"):
        rebuild(recipe, path, pool, out, facts, f"sweeps export {path} {CARD}")
    return lacking


def rebuild(
    recipe: RecipeFile, path: Path, pool: Pool, out: Path, facts: SweepFacts, command: str
) -> None:
    """Rebuild a recipe's model, or one a task, into a new folder that is there whole or not at all.

    Args:
        recipe: of a single model, or of one for each task.
        path: the recipe's file, which is copied beside the weights.
        pool: the recipe's, unchanged.
        out: the new folder.
        facts: tasks and accuracies for `tasks.json` and the card.
        command: what makes the folder, for the card.

    Raises:
        InputError: `out` is there already; what the recipe learned is gone or has changed.
    """
    data = learned_data(recipe, path)
    statistics = known_statistics(recipe, pool, path)
    what = Recipe(recipe.method, recipe.params, data)
    row = METHODS.get(recipe.method)
    if row is not None and row.output == "model_per_task":
        vectors = replace(filed_vectors(pool), results=results_dtype(recipe.result_dtype))
        with new_folder(out) as part:
            for task in pool.tasks:
                place = inside(part, task, f"{path}: experts")
                place.mkdir()
                fused = merged(vectors, of_task(what, task))
                fused |= running(recipe, path, pool, what, task)
                fill(place, pool, fused, recipe, path, facts.of([task]), command)
        return
    fused = rebuilt(pool, what, recipe.result_dtype, statistics)
    fused |= running(recipe, path, pool, what)
    fused |= pool.family.tempered(pool.base, fused, learned_beta(what))
    with new_folder(out) as part:
        fill(part, pool, fused, recipe, path, facts, command)


def running(
    recipe: RecipeFile, path: Path, pool: Pool, what: Recipe, task: str | None = None
) -> dict[str, Tensor]:
    """Running statistics of batch norm of a recipe's model, in the base's dtypes: those that it was
    evaluated with, which are beside the recipe; else averages. None without batch norm.

    Raises:
        InputError: see `known_running` and `batch_norm`.
    """
    found = known_running(recipe, path)
    if found is not None and task is not None:
        start = f"{task}/"
        found = {k.removeprefix(start): v for k, v in found.items() if k.startswith(start)}
    if found is None and recipe.method != BASE:
        norms = batch_norm(pool, "average")
        coding, row = None, METHODS.get(recipe.method)
        if norms.members and row is not None and row.learned == "coding":
            coding, _ = learned_coding(what, pool.tasks, pool.groups)
        given = coding, what.method, what.params
        found = averaged(norms, pool.tasks, *given) if norms.members else None
    return {name: value.to(pool.base.rest[name].dtype) for name, value in (found or {}).items()}


def known_pool(recipe: RecipeFile, path: Path) -> Pool:
    """The pool that a recipe names, unchanged.

    Raises:
        InputError: an ingredient, or what is beside the base, has changed.
    """
    pool = open_pool(recipe.base.source, {t: m.source for t, m in recipe.experts.items()})
    for name, checkpoint, model in (
        ("base", pool.base, recipe.base),
        *((task, pool.experts[task], model) for task, model in recipe.experts.items()),
    ):
        found = content_hash(checkpoint)
        if found != model.sha256:
            raise InputError(
                f"{path}: {name}: {model.source} has changed: sha256 {found[:12]}…; "
                f"the recipe was made from {model.sha256[:12]}…"
            )
    check_beside(recipe, pool.base, path)
    return replace(pool, deltas=recipe.delta_dtype)


def fill(
    part: Path,
    pool: Pool,
    fused: Mapping[str, Any],
    recipe: RecipeFile,
    path: Path,
    facts: SweepFacts,
    command: str,
) -> None:
    """Write all files of an export into a folder that is there."""
    write_model(part, pool.base, fused, recipe.result_dtype)
    (part / "recipe.yaml").write_bytes(read_bytes(path))
    tasks = write_tasks(part, pool, facts)
    card = Card(
        recipe.method,
        dict(recipe.params),
        (recipe.base.source, recipe.base.sha256),
        {name: (model.source, model.sha256) for name, model in recipe.experts.items()},
        tasks,
        command,
        facts.command,
        facts.dtype,
    )
    write_card(part, pool, card)
