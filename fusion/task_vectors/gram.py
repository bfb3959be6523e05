"""Gram matrices of task vectors, and what follows from them: norms, cosines, angles, distances.

All are computed from one pass over the task vectors of T models. Axes: T tasks (experts or
ingredients).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.packed import pieces
from fusion.task_vectors.task_vectors import TaskVectors, block_of, is_batch_statistic

BLOCK = 1 << 16
"""Elements of each row that are multiplied at a time: 512 KiB of float64 a row."""


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products ⟨τ_s, τ_t⟩ of T task vectors, over the whole model and by group of tensors."""

    tasks: tuple[str, ...]
    """Names of the T task vectors."""
    total: Tensor
    """float64 [T, T]: the sum over all groups."""
    by_group: Mapping[str, Tensor]
    """Group name -> float64 [T, T]. A group is one tensor, unless `regrouped` joined several."""

    def of(self, task: str) -> int:
        """Row of `task` in the matrices.

        Raises:
            InputError: an unknown task.
        """
        if task not in self.tasks:
            raise InputError(f"task {task!r}: not one of {', '.join(self.tasks)}")
        return self.tasks.index(task)


def gram(
    deltas: TaskVectors | Iterable[tuple[str, Tensor]],
    *,
    tasks: Sequence[str] | None = None,
    group: Callable[[str], str] | None = None,
) -> Gram:
    """Gram matrix of task vectors, G_st = Σ_tensors ⟨τ_s, τ_t⟩, in one pass.

    One tensor is in memory at a time. Products and sums are made in float64, where the product of
    two float32 numbers is exact. Batch-norm statistics and integer buffers are left out, since they
    are no weights.

    Args:
        deltas: task vectors, or pairs (tensor name, [T, *shape]) as they are read.
        tasks: names of the T axis. Default: those of the `TaskVectors`, or "0", "1", …
        group: tensor name -> name of the group that its products are added to. Default: each tensor
            is a group of its own; `regrouped` can join them later.

    Raises:
        InputError: no tensor, another T, NaN or Inf.

    >>> pair = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> gram([("w", pair)], tasks=("a", "b")).total.tolist()
    [[25.0, 8.0], [8.0, 4.0]]
    """
    if isinstance(deltas, TaskVectors):
        tasks, deltas = deltas.tasks, deltas.deltas.items()
    found: dict[str, Tensor] = {}
    for name, delta in deltas:
        if not delta.is_floating_point() or is_batch_statistic(name):
            continue
        if tasks is None:
            tasks = tuple(map(str, range(len(delta))))
        if len(delta) != len(tasks):
            raise InputError(f"tensor {name!r}: {len(delta)} task vectors; {len(tasks)} needed")
        found[name] = tensor_gram(delta)
        if found[name].device.type == "cpu":
            check(found[name], name, tasks)
    if tasks is None or not found:
        raise InputError("task vectors: no floating-point tensor to compare")
    by_group: dict[str, Tensor] = {}
    for name, products in zip(found, torch.stack([*found.values()]).cpu(), strict=True):
        check(products, name, tasks)
        key = name if group is None else group(name)
        by_group[key] = by_group[key] + products if key in by_group else products
    return assembled(tuple(tasks), by_group)


def tensor_gram(delta: Tensor, origin: Tensor | None = None) -> Tensor:
    """Gram matrix [T, T] float64 of one tensor's task vectors [T, *shape], on their device.

    Args:
        delta: task vectors.
        origin: a tensor [*shape] that is put before them, so that the matrix is [T + 1, T + 1].
            Default: none.
    """
    rows = [row.reshape(-1) for row in delta.detach()]  # views, where rows are contiguous
    size = rows[0].numel() if rows else 0
    if origin is not None:
        rows.insert(0, origin.detach().reshape(-1))
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=delta.device)
    if delta.device.type != "cpu":
        flat = delta.detach().reshape(len(delta), size)
        for span in pieces(size, len(rows)):
            wide = flat[:, span].double()
            if origin is not None:
                wide = torch.cat([rows[0][None, span].double(), wide])
            total.addmm_(wide, wide.T)
        return (total + total.T) / 2
    block = torch.empty(len(rows), min(BLOCK, size), dtype=torch.float64)
    for start in range(0, size, BLOCK):
        width = min(BLOCK, size - start)
        for target, row in zip(block, rows, strict=True):
            target[:width].copy_(row[start : start + width])
        total.addmm_(block[:, :width], block[:, :width].T)
    return (total + total.T) / 2


def check(products: Tensor, name: str, tasks: Sequence[str]) -> None:
    """Raise InputError if a tensor's task vector has NaN or Inf, seen in its squared norm."""
    bad = [task for task, own in zip(tasks, products.diagonal(), strict=True) if not own.isfinite()]
    if bad:
        raise InputError(f"task {bad[0]!r}: tensor {name!r}: NaN or Inf in the task vector")


def assembled(tasks: tuple[str, ...], by_group: Mapping[str, Tensor]) -> Gram:
    """A `Gram` from its groups, whose total does not depend on how the model is split into shards.

    Groups are added in the order of their names, so the bits are always the same.
    """
    ordered = {name: by_group[name] for name in sorted(by_group)}
    total = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for products in ordered.values():
        total = total + products
    return Gram(tasks, total, ordered)


def merged_grams(parts: Iterable[Gram]) -> Gram:
    """Gram matrix of a whole model from those of its shards: matrices of one group are added.

    If every group lies in one shard, the result has the same bits as that of the whole model.

    Raises:
        InputError: no part, or parts with other tasks.
    """
    parts = list(parts)
    if not parts:
        raise InputError("Gram matrices: none given; at least one is needed")
    by_group: dict[str, Tensor] = {}
    for part in parts:
        if part.tasks != parts[0].tasks:
            raise InputError(
                f"Gram matrices: of tasks {', '.join(part.tasks)}"
                f" and of {', '.join(parts[0].tasks)}: not shards of one model"
            )
        for name, products in part.by_group.items():
            by_group[name] = by_group[name] + products if name in by_group else products
    return assembled(parts[0].tasks, by_group)


def regrouped(matrix: Gram, group: Callable[[str], str]) -> Gram:
    """Join groups: `group` maps each group's name to the name of the wider group."""
    by_group: dict[str, Tensor] = {}
    for name in matrix.by_group:
        key, products = group(name), matrix.by_group[name]
        by_group[key] = by_group[key] + products if key in by_group else products
    return assembled(matrix.tasks, by_group)


def layer_of(name: str) -> str:
    """Transformer layer of a tensor, else the first part of its name: a `group` function.

    >>> layer_of("encoder.layers.3.mlp.fc1.weight"), layer_of("visual_projection.weight")
    ('encoder.layers.3', 'visual_projection')
    """
    return block_of(name) or name.partition(".")[0]


def norms(products: Tensor) -> Tensor:
    """Norms ‖τ_t‖ [T] from a Gram matrix [T, T]."""
    return products.diagonal().clamp_min(0).sqrt()


def zero_tasks(matrix: Gram) -> list[str]:
    """Names of the tasks whose model equals the base; they have no angle to any other."""
    return [task for task, own in zip(matrix.tasks, norms(matrix.total), strict=True) if own == 0]


def cosines(products: Tensor) -> Tensor:
    """Cosine similarities G_st / √(G_ss·G_tt) in [−1, 1], [T, T]; NaN if a task vector is zero."""
    length = norms(products)
    ratio = products / length / length[:, None]
    ratio = torch.where((length[:, None] > 0) & (length > 0), ratio.clamp(-1, 1), torch.nan)
    diagonal = torch.where(length > 0, 1.0, torch.nan).to(ratio)
    return ratio.diagonal_scatter(diagonal)


def angles(products: Tensor) -> Tensor:
    """Angles arccos(cosine) between task vectors in degrees, [T, T]; NaN where one is zero.

    The angle is seen from the base, the common initialisation of the models.

    >>> angles(torch.tensor([[1.0, 1.0], [1.0, 2.0]]).double()).round().tolist()
    [[0.0, 45.0], [45.0, 0.0]]
    """
    return cosines(products).arccos().rad2deg()


def distances(products: Tensor) -> Tensor:
    """Distances between models, ‖τ_s − τ_t‖ = ‖θ_s − θ_t‖, [T, T].

    Values near 1e-8·‖τ‖ are rounding.
    """
    own = products.diagonal()
    return (own[:, None] + own - 2 * products).clamp_min(0).sqrt()


def model_stock_ratio(products: Tensor) -> tuple[float, float]:
    """Model Stock's mean pairwise cosine c and interpolation ratio T·c / (1 + (T − 1)·c).

    The merged tensor is ratio·mean_t(θ_t) + (1 − ratio)·θ₀. The published rule applies this to each
    tensor. Both numbers are NaN if a task vector is zero.

    Raises:
        InputError: fewer than two task vectors.

    Source: Jang et al. 2024, arXiv:2403.19522, eq. (7) for T models.
    """
    count = len(products)
    if count < 2:
        raise InputError(f"Model Stock: {count} task vectors; at least 2 needed")
    off = ~torch.eye(count, dtype=torch.bool)
    cosine = float(cosines(products)[off].mean())
    scale = 1 + (count - 1) * cosine
    return cosine, count * cosine / scale if scale else math.nan


def least_norm(products: Tensor, *, convex: bool = True) -> Tensor:
    """Weights a [T] with Σ a_t = 1 that minimise ‖Σ_t a_t τ_t‖² = aᵀGa; float64.

    Solved as one (non-negative) least-squares problem without a constraint: with LᵀL = G and u =
    s·a, min_s ‖Lu‖² + (Σu − 1)² = ‖La‖²/(1 + ‖La‖²), which grows with ‖La‖, so a is the solution u
    divided by its sum. This also works for a singular G (equal models).

    Args:
        products: the Gram matrix G [T, T].
        convex: True (default): a_t ≥ 0, a point of the simplex. False: any sign, a point of the
            affine hull.

    Source: Lawson & Hanson 1974, Solving Least Squares Problems, ch. 23 (LDP).

    >>> [round(a, 6) for a in least_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()]
    [0.75, 0.25]
    """
    matrix = products.double().numpy()
    scale = float(np.mean(np.diag(matrix))) or 1.0  # weights do not depend on it; conditioning does
    values, vectors = np.linalg.eigh(matrix / scale)
    values[values < 1e-12 * values.max()] = 0  # rounding of G: directions that are not there
    root = np.sqrt(values)[:, None] * vectors.T
    rows = np.vstack([root, np.ones(len(matrix))])
    target = np.zeros(len(rows))
    target[-1] = 1.0
    found = (
        scipy.optimize.nnls(rows, target)[0]
        if convex
        else np.linalg.lstsq(rows, target, rcond=None)[0]
    )
    return torch.from_numpy(found / found.sum())
