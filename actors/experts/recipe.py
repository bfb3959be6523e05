"""Turn a recipe into weights: one merged model, a learned coding, or a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from actors.artifacts.coding_file import beta_of, load_coding
from actors.artifacts.gate_file import fit, load
from actors.artifacts.in_model_state_file import learned_tensors
from actors.artifacts.recipe import BASE, Recipe
from actors.pool.pool import Pool
from actors.pool.streaming_merge import streamed
from actors.pool.vectors_on_disk import filed_vectors
from fusion.errors import InputError, unknown
from fusion.kinds import NO_SINGLE_MODEL, MergeInputs
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS, Gated, Method
from fusion.task_vectors.coding import mix
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors

RESULTS = ("base", "float32")
"""Options for rounding merged models: each tensor to its dtype in the base, or to float32."""


def results_dtype(name: str) -> torch.dtype | None:
    """The dtype of merged models; None: each tensor's dtype in the base.

    >>> results_dtype("base"), results_dtype("float32")
    (None, torch.float32)
    """
    assert name in RESULTS
    return None if name == "base" else torch.float32


def static_method(recipe: Recipe) -> Method | None:
    """The method of a recipe for a single model; None: the base.

    Raises:
        InputError: an unknown name, or a method without a single model.
    """
    method = METHODS.get(recipe.method)
    if method is None:
        if recipe.method != BASE:
            raise InputError(unknown("method", recipe.method, [*METHODS, BASE]))
        return None
    if method.output == "model_per_task":
        method.bound(recipe.params)  # a misspelt parameter is reported first
        if recipe.task is not None:
            return method
    if method.output in NO_SINGLE_MODEL:
        why = NO_SINGLE_MODEL[method.output]
        raise InputError(f"{recipe.method}: {why}; there is no single model to build")
    return method


def learned_coding(
    recipe: Recipe, tasks: Sequence[str], groups: Sequence[str]
) -> tuple[Tensor, Trim]:
    """The learned or chosen coding, and the trim of the task vectors it mixes.

    Raises:
        InputError: no learned file, or one of another pool.
    """
    trim = METHODS[recipe.method].trim(Shape(tuple(tasks), tuple(groups)), **recipe.params)
    if recipe.learned is None:
        raise InputError(f"{recipe.method}: nothing learned; a recipe needs its coding file")
    return load_coding(recipe.learned, tasks, groups, recipe.method), trim


def learned_beta(recipe: Recipe) -> float:
    """The inverse temperature learned with a coding; otherwise 1."""
    method = METHODS.get(recipe.method)
    if method is None or method.learned != "coding" or recipe.learned is None:
        return 1.0
    return beta_of(recipe.learned)


def opened_gate(
    method: Gated, recipe: Recipe, tasks: Sequence[str], groups: Sequence[str]
) -> tuple[Gate, str, Trim]:
    """The gate of a recipe, the hash of its extractor, and the trim of its task vectors.

    Raises:
        InputError: no learned gate, or one that does not fit this pool.
    """
    if recipe.learned is None:
        raise InputError(f"{recipe.method}: nothing learned; a recipe needs its gate file")
    gate, manifest = load(recipe.learned, recipe.method)
    names, key = tuple(groups), manifest.extractor_hash
    gate = fit(
        gate, manifest, tasks=tuple(tasks), groups=names, extractor_hash=key,
        width=manifest.width, where=recipe.method,
    )  # fmt: skip
    shape = Shape(tuple(tasks), names, manifest.width)
    return gate, key, method.plan(shape, **recipe.params).trim


def rebuilt(
    pool: Pool,
    recipe: Recipe,
    results: str = "base",
    statistics: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Merge a recipe's model from a pool's files, with one tensor's task vectors in memory.

    Args:
        pool: an opened pool.
        recipe: recipe of a single model.
        results: dtype to round to, see `RESULTS`.
        statistics: statistics that the method reads: tensor name -> [T, …].

    Raises:
        InputError: see `merged`, `streamed` and `file_vectors`.
    """
    method = static_method(recipe)
    if method is not None and method.learned == "coding":
        coding, trim = learned_coding(recipe, pool.tasks, pool.groups)
        if trim.nothing and pool.deltas == "float32":
            shared = coding.shape[2] == 1
            at = {name: 0 if shared else i for i, name in enumerate(pool.groups)}
            columns = coding[0].T.tolist()
            dtype = results_dtype(results)
            return dict(streamed(pool, lambda name: columns[at[name]], results=dtype))
    vectors = replace(filed_vectors(pool), results=results_dtype(results))
    return merged(vectors, recipe, statistics)


def of_task(recipe: Recipe, task: str) -> Recipe:
    """The recipe of one task's model, for a method that makes one model for each task."""
    return replace(recipe, task=task)


def merged(
    vectors: TaskVectors, recipe: Recipe, statistics: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Merge a recipe's whole model in this process, for export.

    Raises:
        InputError: an unknown name, or a method without a single model.
    """
    method = static_method(recipe)
    if method is None:
        return mix(vectors, torch.zeros(1, len(vectors.tasks), 1))
    if method.learned == "coding":
        coding, trim = learned_coding(recipe, vectors.tasks, vectors.groups)
        return mix(trimmed(vectors, trim, run_surveys([trim_survey(vectors, trim)])), coding)
    learned = learned_tensors(recipe, vectors.tasks) if method.learned == "in_model" else None
    inputs = MergeInputs(statistics=statistics, task=recipe.task, learned=learned)
    return method.merge(vectors, inputs, **recipe.params)
