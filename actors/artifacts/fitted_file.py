"""Files of classifiers fitted to embeddings and labels: one classifier a task, all in one file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.files.checksums import sealed, unsealed
from fusion.errors import InputError
from fusion.methods.classifiers.interface import TaskEmbeddings
from fusion.registry import METHODS, Fitted

SEPARATOR = "|"
"""Separates task and tensor in the names of a file's tensors."""


def dump_fits(kept: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Bytes of a file (safetensors): `task|tensor` -> tensor of the fitted classifier."""
    return sealed(
        {
            f"{task}{SEPARATOR}{name}": tensor.detach().cpu().contiguous()
            for task, tensors in kept.items()
            for name, tensor in tensors.items()
        },
        {},
    )


def load_fit(data: bytes, task: str, where: str) -> dict[str, Tensor]:
    """Tensors of the classifier of one task.

    Raises:
        InputError: damaged, or without this task.
    """
    try:
        tensors, _ = unsealed(data, must=False)
    except ValueError as error:
        raise InputError(f"{where}: not a file of a fit: {' '.join(str(error).split())}") from None
    start = f"{task}{SEPARATOR}"
    found = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
    if not found:
        tasks = sorted({name.partition(SEPARATOR)[0] for name in tensors})
        raise InputError(f"{where}: of tasks {', '.join(tasks)}; {task!r} needed")
    return found


def fit(
    data: Callable[[str, Mapping[str, Any] | None], TaskEmbeddings],
    tasks: Iterable[str],
    recipe: Recipe,
) -> tuple[bytes, dict[str, float]]:
    """Fit a classifier to each task.

    Args:
        data: task, and the method that merges or None (`merged_by`) -> embeddings, labels
            and head of its rows.
        tasks: names of the tasks.
        recipe: a method of kind `Fitted` with its hyper-parameters.

    Returns:
        The file of all classifiers, and `<task>/<name>` -> chosen hyper-parameter.

    Raises:
        InputError: the method fits no classifier, or refuses a task, which is named.
    """
    method = METHODS.get(recipe.method)
    if not isinstance(method, Fitted):
        raise InputError(f"{recipe.method}: fits no classifier of embeddings")
    kept: dict[str, Mapping[str, Tensor]] = {}
    chosen: dict[str, float] = {}
    of = method.merged_by(recipe.params)
    for task in tasks:
        try:
            found = method.fit(data(task, of), **recipe.params)
        except InputError as error:
            raise InputError(f"task {task!r}: {error}") from None
        kept[task] = found.kept
        chosen |= {f"{task}/{name}": value for name, value in found.chosen.items()}
    return dump_fits(kept), chosen


def fitted_logits(
    method: Fitted, data: TaskEmbeddings, task: str, recipe: Recipe, role: str
) -> Tensor:
    """Logits [N, C] of a task's rows by its fitted classifier.

    Raises:
        InputError: the recipe has no fitted file, or one without this task.
    """
    if recipe.learned is None:
        raise InputError(f"{recipe.method}: nothing fitted; a recipe needs its file")
    kept = load_fit(recipe.learned, task, recipe.method)
    return method.logits(
        lambda source: data.embedded(source, role, None),
        data.head,
        kept,
        data.experts,
        **recipe.params,
    )
