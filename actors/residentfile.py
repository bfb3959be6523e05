"""Files of parameters that live in shards: routers, or a mask's logits, with Adam's moments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from actors.evaluation import Recipe
from fusion.concrete import COEFFICIENTS
from fusion.errors import InputError

FORMAT = 1

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, as torch calls them; in a file `<name>|<moment>`."""


def is_moment(name: str) -> bool:
    """Whether a tensor of a state is one of Adam's."""
    return "|" in name


def dump_resident(
    tensors: Mapping[str, Tensor], method: str, tasks: Sequence[str], step: int
) -> bytes:
    """safetensors, with the method, the tasks in order, and the steps taken beside it."""
    from safetensors.torch import save

    about = json.dumps({"format": FORMAT, "method": method, "tasks": list(tasks), "step": step})
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(save(found, metadata={"resident": about}))


def load_resident(data: bytes, method: str, tasks: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """Tensors by name, and the steps taken.

    Raises:
        InputError: damaged, of another method, or of other tasks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        size = int.from_bytes(data[:8], "little")
        about: dict[str, Any] = json.loads(
            json.loads(data[8 : 8 + size])["__metadata__"]["resident"]
        )
        made, named, step = about["method"], list(about["tasks"]), int(about["step"])
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{method}: not a file of what was learned: {said}") from None
    if made != method:
        raise InputError(f"{method}: learned: a file of {made!r}; one of {method!r} needed")
    if named != list(tasks):
        raise InputError(
            f"{method}: learned: tasks: {', '.join(map(str, named))};"
            f" the pool has {', '.join(tasks)}, in this order"
        )
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
