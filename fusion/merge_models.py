"""Merge models, state dicts or model folders with one call, and the methods as checked functions.

`fusion.merge` takes a method by name; `fusion.<method>` takes task vectors. Both check
hyper-parameters as sweep files do.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeAlias, TypeVar, overload

from torch import Tensor
from torch.nn import Module

from fusion.errors import InputError, unknown
from fusion.kinds import MergeInputs, Method
from fusion.registry import METHODS
from fusion.task_vectors.task_vectors import StateDict, TaskVectors

M = TypeVar("M", bound=Module)
Folder: TypeAlias = str | os.PathLike[str]
"""A model's folder, or its id on the hub."""

READERS = "fusion_sweeps.folders"
"""Entry-point group of the function that opens model folders. This package does no I/O."""


@dataclass(frozen=True)
class OpenedFolders:
    """Model folders as a reader opens them (`READERS`)."""

    vectors: TaskVectors
    """Of the tensors that are merged."""
    complete: Callable[[StateDict], dict[str, Tensor]]
    """Adds the base's other tensors to the merged ones."""


@overload
def merge(
    method: str,
    base: M,
    experts: Mapping[str, Module],
    /,
    *,
    task: str | None = None,
    **params: Any,
) -> M: ...


@overload
def merge(
    method: str,
    base: StateDict | Folder,
    experts: Mapping[str, StateDict] | Mapping[str, Folder],
    /,
    *,
    task: str | None = None,
    **params: Any,
) -> dict[str, Tensor]: ...


def merge(
    method: str,
    base: Module | StateDict | Folder,
    experts: Mapping[str, Any],
    /,
    *,
    task: str | None = None,
    **params: Any,
) -> Module | dict[str, Tensor]:
    """Merge experts that were fine-tuned from one base, with a method that needs weights alone.

    Args:
        method: a name of `fusion.METHODS`.
        base: the pretrained model: a torch module, a state dict, or a folder or hub id.
        experts: name -> fine-tuned model, of the same kind as `base`. Of folders, also LoRA
            adapters of the base.
        task: the expert whose model is wanted, of a method that makes one model for each task.
        params: hyper-parameters of the method, checked as in sweep files.

    Returns:
        Of modules: a copy of `base` with merged weights. Of state dicts and folders: a state dict
        in the base's dtypes. Nothing that was given is changed.

    Raises:
        InputError: an unknown method, wrong hyper-parameters, a method that needs more than
            weights, models that do not fit each other.

    Folders are read by a function that another package registers as an entry point of the group
    `fusion_sweeps.folders`; `fusion-sweeps` brings one.

    >>> import torch
    >>> base = {"w": torch.zeros(3)}
    >>> experts = {"a": {"w": torch.tensor([1.0, 0.0, 2.0])}, "b": {"w": torch.ones(3)}}
    >>> merge("task_arithmetic", base, experts, scale=0.5)["w"].tolist()
    [1.0, 0.5, 1.5]
    >>> merge("ties", base, experts, density=2.0)
    Traceback (most recent call last):
    ...
    fusion.errors.InputError: ties: density: 2.0; float in [0, 1] allowed
    """
    row = of_weights(method, params)
    check_kinds(base, experts)
    inputs = MergeInputs(task=task)
    if isinstance(base, Module):
        states = {name: expert.state_dict() for name, expert in experts.items()}
        vectors = TaskVectors.from_state_dicts(base.state_dict(), states)
        check_task(row, task, vectors)
        merged = copy.deepcopy(base)
        row.merge(vectors.into(merged.state_dict()), inputs, **params)
        return merged
    if isinstance(base, Mapping):
        vectors = TaskVectors.from_state_dicts(base, experts)
        check_task(row, task, vectors)
        return row.merge(vectors, inputs, **params)
    opened = folder_reader(base)(os.fspath(base), {n: os.fspath(e) for n, e in experts.items()})
    check_task(row, task, opened.vectors)
    return opened.complete(row.merge(opened.vectors, inputs, **params))


def of_weights(name: str, params: Mapping[str, Any]) -> Method:
    """The row of a method that merges weights alone, with hyper-parameters that it takes.

    Raises:
        InputError: an unknown name, a method that needs more than weights, wrong hyper-parameters.
    """
    if name not in METHODS:
        raise InputError(unknown("method", name, METHODS))
    row = METHODS[name]
    if row.reads != {"weights"}:
        raise InputError(
            f"{name}: needs {row.needs}, which weights alone do not give; use it in a sweep file"
        )
    row.bound(params)
    return row


def check_task(row: Method, task: str | None, vectors: TaskVectors) -> None:
    """Raise InputError if a task is named to a method that makes one model for all tasks, or to
    none that is there."""
    if task is not None and row.output == "one_model":
        raise InputError(f"{row.rule.__name__}: task: {task!r}: makes one model for all tasks")
    if row.output == "model_per_task" and task not in vectors.tasks:
        allowed = f"one model a task; one of {', '.join(vectors.tasks)} allowed"
        raise InputError(f"{row.rule.__name__}: task: {task!r}: {allowed}")


def check_kinds(base: object, experts: object) -> None:
    """Raise InputError unless base and experts are all modules, all state dicts, or all folders."""
    if not isinstance(experts, Mapping) or not experts:
        raise InputError(f"experts: {type(experts).__name__}: a mapping of names to models needed")
    for kind, called in (
        (Module, "a torch module"),
        (Mapping, "a state dict"),
        ((str, os.PathLike), "a folder or hub id"),
    ):
        if isinstance(base, kind):
            for name, expert in experts.items():
                if not isinstance(expert, kind):
                    raise InputError(
                        f"expert {name!r}: {type(expert).__name__}: {called} needed, as the base is"
                    )
            return
    allowed = "a torch module, a state dict, a folder or a hub id allowed"
    raise InputError(f"base: {type(base).__name__}; {allowed}")


def folder_reader(base: Folder) -> Callable[[str, Mapping[str, str]], OpenedFolders]:
    """The function that opens model folders: base and experts -> task vectors.

    Raises:
        InputError: no installed package brings one.
    """
    for point in entry_points(group=READERS):
        reader: Callable[[str, Mapping[str, str]], OpenedFolders] = point.load()
        return reader
    raise InputError(
        f"base: {os.fspath(base)!r}: no installed package reads model folders (entry points"
        f" {READERS!r}); install fusion-sweeps anew, or give modules or state dicts"
    )


def checked_rule(name: str) -> Callable[..., Any]:
    """The rule of a method, which checks its hyper-parameters as sweep files do before it runs.

    Raises:
        InputError: (of the function) unknown, missing or wrong hyper-parameters.

    >>> import torch
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1)}, {"a": {"w": torch.ones(1)}})
    >>> checked_rule("task_arithmetic")(v, scale="large")
    Traceback (most recent call last):
    ...
    fusion.errors.InputError: task_arithmetic: scale: 'large'; float or mapping allowed
    """
    row = METHODS[name]
    inputs = set(inspect.signature(row.rule).parameters) - set(row.parameters)

    @functools.wraps(row.rule)
    def rule(*args: Any, **given: Any) -> Any:
        others = {key: value for key, value in given.items() if key in inputs}
        params = {key: value for key, value in given.items() if key not in inputs}
        bound = row.bound(params)
        return row.rule(*args, **row.supplied(*args, bound=bound), **others, **bound)

    return rule
