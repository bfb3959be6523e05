"""Scales of a merge (λ): one number, one for each task, or a curve over the model's depth.

Every method with such a `scale` reads it here, and all apply it alike:

* λ of the merge, a number or a curve, multiplies the merged task vector of each tensor: θ_k =
  θ₀,k + λ_k·merged_k. It is applied last, so it changes no cut, mask or election.
* λ_t of a task, a number or a curve, multiplies the task vector τ_t where it meets the others:
  after what the method does to τ_t alone (a trim, a mask, dropped entries), and before the tasks
  are compared or added (sign election, selection, singular value decomposition, sum). Equal numbers
  for all tasks give the result of this one number, up to rounding, in every method.

Weights (mergekit's `weight`) multiply the task vectors at the same place as λ_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from fusion.errors import InputError, unknown
from fusion.methods.static.coefficients import entries, number, tensor_weights
from fusion.methods.static.depth import depths, layer_depths
from fusion.task_vectors.coding import Shares
from fusion.task_vectors.task_vectors import TaskVectors

Scale: TypeAlias = float | Mapping[str, Any]
"""A number, a curve, or a mapping from each task to a number or a curve. A curve is
`{start: a, end: b}` or `{preset: lines, alpha: a, beta: b}`, see `curve`."""

Weights: TypeAlias = Sequence[Any] | Mapping[str, Any] | Tensor | None
"""Weights of the tasks in the forms of `weighted_average`; None: 1 for each."""

ENDS = ("start", "end")
LINES = ("preset", "alpha", "beta")


def scaled_shares(
    vectors: TaskVectors, scale: Scale, weights: Weights = None, *, summed: bool = False
) -> Callable[[str], Shares]:
    """Name of a tensor -> its coefficients λ_t·w_t of the tasks, and the λ of their merge.

    Names and tasks are those of the whole model, so a shard takes the same scale.

    Args:
        vectors: base and task vectors.
        scale: see `Scale`.
        weights: w_t.
        summed: whether the method adds task vectors; see `curve` on LiNeS' α.

    Raises:
        InputError: an unknown task or field, a task or field without a number, no finite number;
            wrong weights.
    """
    tasks, groups = vectors.tasks, vectors.groups
    factors = {} if weights is None else tensor_weights(vectors, weights)
    ones = [1.0] * len(tasks)
    if not isinstance(scale, Mapping) or is_curve(scale, tasks):
        line = over_depth("scale", scale, groups, tasks, summed)
        return lambda name: Shares(factors.get(name, ones), scale=line[name])
    lines = [
        over_depth(f"scale: task {task!r}", entry, groups, tasks, summed)
        for task, entry in entries(tasks, scale, "scale", "number").items()
    ]

    def shares(name: str) -> Shares:
        row = factors.get(name, ones)
        return Shares([line[name] * w for line, w in zip(lines, row, strict=True)])

    return shares


def is_curve(scale: Mapping[str, Any], tasks: Sequence[str]) -> bool:
    """Whether a mapping is a curve, and not one from tasks.

    >>> is_curve({"start": 0.1, "end": 0.5}, ["a"]), is_curve({"a": 0.1}, ["a"])
    (True, False)
    """
    return any(key in scale and key not in tasks for key in (*ENDS, "preset"))


def over_depth(
    owner: str, entry: Any, groups: Sequence[str], tasks: Sequence[str], summed: bool
) -> dict[str, float]:
    """Tensor name -> λ, from a number or a curve; `owner`: prefix of messages."""
    if isinstance(entry, Mapping):
        return curve(owner, entry, groups, len(tasks), summed)
    return dict.fromkeys(groups, number(owner, entry))


def curve(
    owner: str, fields: Mapping[str, Any], groups: Sequence[str], tasks: int, summed: bool
) -> dict[str, float]:
    """Tensor name -> λ, from a curve that is linear in the number of the layer.

    `{start, end}`: λ = start + (end − start)·d with the relative depth d of the tensor
    (`fusion.methods.static.depth.depths`). The first layer of each stack and the embeddings have
    `start`; the last layer of each stack and what comes after it have `end`.

    `{preset: lines, alpha, beta}` (LiNeS): λ = α + β·d in the layers, and α in all tensors outside
    of them, as in the released code. α defaults to 1/T, the paper's for a sum of task vectors; its
    α of other merges is ‖Σ τ‖/(T·‖merged τ‖), which has to be given.

    Raises:
        InputError: an unknown or a missing field, no finite number, a model without numbered
            layers.

    Source of the preset: Wang et al. 2024, arXiv:2410.17146 (LiNeS), and its released code.

    >>> names = ["embed.weight", "layers.0.w", "layers.1.w", "layers.2.w", "norm.weight"]
    >>> list(curve("scale", {"start": 0, "end": 1}, names, 2, True).values())
    [0.0, 0.0, 0.5, 1.0, 1.0]
    >>> list(curve("scale", {"preset": "lines", "beta": 0.5}, names, 2, True).values())
    [0.5, 0.5, 0.75, 1.0, 0.5]
    """
    inside = layer_depths(groups)
    if not inside:
        raise InputError(
            f"{owner}: a curve over depth needs tensors in numbered layers, as"
            " layers.3.fc1.weight; this model has none"
        )
    allowed = LINES if "preset" in fields else ENDS
    for field in fields:
        if field not in allowed:
            raise InputError(f"{owner}: {unknown('field', str(field), allowed)}")
    if "preset" not in fields:
        start, end = (given(owner, fields, field) for field in ENDS)
        return {name: start + (end - start) * depth for name, depth in depths(groups).items()}
    if fields["preset"] != "lines":
        raise InputError(f"{owner}: {unknown('preset', str(fields['preset']), ['lines'])}")
    if "alpha" not in fields and not summed:
        raise InputError(
            f"{owner}: alpha: not given; a number needed, since its default 1/T is that of a sum of"
            " task vectors"
        )
    alpha = given(owner, {"alpha": 1 / tasks, **fields}, "alpha")
    beta = given(owner, fields, "beta")
    return {name: alpha + beta * inside.get(name, 0.0) for name in groups}


def given(owner: str, fields: Mapping[str, Any], field: str) -> float:
    """The number of a field.

    Raises:
        InputError: it is not given, or no finite number.
    """
    if field not in fields:
        raise InputError(f"{owner}: {field}: not given; a number needed")
    return number(f"{owner}: {field}", fields[field])
