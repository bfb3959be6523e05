"""Files of parameters trained inside shards: routers or mask logits, with Adam's moments."""

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
"""Adam's moments as torch names them; a file stores them as `<name>|<moment>`."""


@dataclass(frozen=True)
class About:
    """Metadata of a file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1]
    method: str
    tasks: list[str]
    step: Annotated[int, Field(ge=0)]


def is_moment(name: str) -> bool:
    """Whether a tensor of a state is a moment of Adam."""
    return "|" in name


def dump_resident(
    tensors: Mapping[str, Tensor], method: str, tasks: Sequence[str], step: int
) -> bytes:
    """Bytes of a file (safetensors) with method, tasks in order and number of steps done."""
    about = {"format": FORMAT, "method": method, "tasks": list(tasks), "step": step}
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return packed(found, "resident", about)


def load_resident(data: bytes, method: str, tasks: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """Tensors by name, and the number of steps done.

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
    """The file that a recipe keeps: a training state without Adam's moments.

    Args:
        state: bytes of the training state.
        method: name of the method.
        tasks: names of the experts.
        mask_steps: up to this step coefficients are not used for merging and are left out.
    """
    tensors, step = load_resident(state, method, tasks)
    kept = {name: tensor for name, tensor in tensors.items() if not is_moment(name)}
    if step <= mask_steps:
        kept.pop(COEFFICIENTS, None)
    return dump_resident(kept, method, tasks, step)


def learned_tensors(recipe: Recipe, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The learned parameters of a recipe, by name.

    Raises:
        InputError: the recipe has no file of learned parameters, or one of another method or pool.
    """
    if recipe.learned is None:
        raise InputError(f"{recipe.method}: nothing learned; a recipe needs its file")
    tensors, _ = load_resident(recipe.learned, recipe.method, tasks)
    return {name: tensor for name, tensor in tensors.items() if not is_moment(name)}
