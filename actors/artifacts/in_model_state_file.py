"""Files of parameters that live in shards: routers, or a mask's logits, with Adam's moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from torch import Tensor

from actors.artifacts.learned_file import packed, unpacked
from actors.artifacts.recipe import Recipe
from actors.files.documents import checked
from fusion.errors import InputError
from fusion.methods.learned.concrete import COEFFICIENTS

FORMAT = 1

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, as torch calls them; in a file `<name>|<moment>`."""


@dataclass(frozen=True)
class About:
    """What a file says beside its tensors."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1]
    method: str
    tasks: list[str]
    step: Annotated[int, Field(ge=0)]


def is_moment(name: str) -> bool:
    """Whether a tensor of a state is one of Adam's."""
    return "|" in name


def dump_resident(
    tensors: Mapping[str, Tensor], method: str, tasks: Sequence[str], step: int
) -> bytes:
    """safetensors, with the method, the tasks in order, and the steps taken beside it."""
    about = {"format": FORMAT, "method": method, "tasks": list(tasks), "step": step}
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return packed(found, "resident", about)


def load_resident(data: bytes, method: str, tasks: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """Tensors by name, and the steps taken.

    Raises:
        InputError: damaged, not finite, of another method, or of other tasks.
    """
    where = f"{method}: not a file of what was learned"
    tensors, note = unpacked(data, "resident", where)
    about = checked(About, note, where)
    named, step = about.tasks, about.step
    if about.method != method:
        raise InputError(f"{method}: learned: a file of {about.method!r}; one of {method!r} needed")
    if named != list(tasks):
        raise InputError(
            f"{method}: learned: tasks: {', '.join(map(str, named))};"
            f" the pool has {', '.join(tasks)}, in this order"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: {name[:80]!r}: NaN or infinity; finite numbers needed")
    return tensors, step


def learned_of(state: bytes, method: str, tasks: Sequence[str], mask_steps: int) -> bytes:
    """The file that a recipe keeps: a state without moments.

    Args:
        state: of `Experts.train`.
        method: that it is of.
        tasks: the experts' names.
        mask_steps: until that step coefficients are steps ahead, and not what is merged with.
    """
    tensors, step = load_resident(state, method, tasks)
    kept = {name: tensor for name, tensor in tensors.items() if not is_moment(name)}
    if step <= mask_steps:
        kept.pop(COEFFICIENTS, None)
    return dump_resident(kept, method, tasks, step)


def learned_tensors(recipe: Recipe, tasks: Sequence[str]) -> dict[str, Tensor]:
    """What was learned, by name.

    Raises:
        InputError: nothing learned, or by another method or pool.
    """
    if recipe.learned is None:
        raise InputError(f"{recipe.method}: nothing learned; a recipe needs its file")
    tensors, _ = load_resident(recipe.learned, recipe.method, tasks)
    return {name: tensor for name, tensor in tensors.items() if not is_moment(name)}
