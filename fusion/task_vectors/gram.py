"""Gram matrices of task vectors: norms, cosines and angles of k models from one pass over them.

Axes: T tasks (experts or ingredients).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.task_vectors import TaskVectors, block_of, is_batch_statistic

BLOCK = 1 << 16
"""Elements a row multiplied at a time: T half-megabytes of float64."""


@dataclass(frozen=True, eq=False)
class Gram:
    """⟨τ_s, τ_t⟩ of T task vectors, over the whole model and by group of tensors."""

    tasks: tuple[str, ...]
    """The names of the T task vectors."""
    total: Tensor
    """[T, T] float64, the sum over all groups."""
    by_group: Mapping[str, Tensor]
    """group -> [T, T] float64; groups are tensors unless they were put together."""

    def of(self, task: str) -> int:
        """The row of `task`.

        Raises:
            InputError: a task that is not there.
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
    """G_st = Σ_tensors ⟨τ_s, τ_t⟩ in one pass, one tensor in memory at a time.

    Entries are multiplied and summed in float64, where the product of two float32 numbers is
    exact. Batch-norm statistics and integer buffers are no weights and are left out.

    Args:
        deltas: task vectors, or pairs (tensor name, [T, *shape]) as they are read.
        tasks: names of the T axis; those of the `TaskVectors`, or "0", "1", … by default.
        group: tensor name -> name of the group whose matrix it adds to. Default: each tensor is
            a group of its own; `regrouped` puts them together later.

    Raises:
        InputError: no tensor, another T, a NaN or Inf.

    Source: the plane, the angles and Model Stock's ratio all read off this matrix.

    >>> pair = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    >>> gram([("w", pair)], tasks=("a", "b")).total.tolist()
    [[25.0, 8.0], [8.0, 4.0]]
    """
    if isinstance(deltas, TaskVectors):
        tasks, deltas = deltas.tasks, deltas.deltas.items()
    by_group: dict[str, Tensor] = {}
    for name, delta in deltas:
        if not delta.is_floating_point() or is_batch_statistic(name):
            continue
        if tasks is None:
            tasks = tuple(map(str, range(len(delta))))
        if len(delta) != len(tasks):
            raise InputError(f"tensor {name!r}: {len(delta)} task vectors; {len(tasks)} needed")
        key = name if group is None else group(name)
        products = tensor_gram(delta)
        check(products, name, tasks)
        by_group[key] = by_group[key] + products if key in by_group else products
    if tasks is None or not by_group:
        raise InputError("task vectors: no floating-point tensor to compare")
    return assembled(tuple(tasks), by_group)


def tensor_gram(delta: Tensor) -> Tensor:
    """[T, T] float64 of one tensor's task vectors [T, *shape], block by block."""
    rows = [row.reshape(-1) for row in delta.detach()]  # views, where rows are contiguous
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=delta.device)
    size = rows[0].numel() if rows else 0
    block = torch.empty(len(rows), min(BLOCK, size), dtype=torch.float64, device=delta.device)
    for start in range(0, size, BLOCK):
        width = min(BLOCK, size - start)
        for target, row in zip(block, rows, strict=True):
            target[:width].copy_(row[start : start + width])
        total.addmm_(block[:, :width], block[:, :width].T)
    return ((total + total.T) / 2).cpu()


def check(products: Tensor, name: str, tasks: Sequence[str]) -> None:
    """Raise InputError where a tensor's task vector has a NaN or Inf in it."""
    bad = [task for task, own in zip(tasks, products.diagonal(), strict=True) if not own.isfinite()]
    if bad:
        raise InputError(f"task {bad[0]!r}: tensor {name!r}: NaN or Inf in the task vector")


def assembled(tasks: tuple[str, ...], by_group: Mapping[str, Tensor]) -> Gram:
    """A Gram of its groups, added in the order of their names: however a model was cut."""
    ordered = {name: by_group[name] for name in sorted(by_group)}
    total = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    for products in ordered.values():
        total = total + products
    return Gram(tasks, total, ordered)


def merged_grams(parts: Iterable[Gram]) -> Gram:
    """The Gram of a whole model from those of its shards: matrices of one group are added.

    Where every group lies in one shard the result is that of the whole model, to the bit.

    Raises:
        InputError: no part, or parts of other tasks.
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
    """The same with groups put together: `group` maps a group's name to the wider one's."""
    by_group: dict[str, Tensor] = {}
    for name in matrix.by_group:
        key, products = group(name), matrix.by_group[name]
        by_group[key] = by_group[key] + products if key in by_group else products
    return assembled(matrix.tasks, by_group)


def part_of(name: str) -> str:
    """The transformer layer a tensor belongs to, else the first part of its name: a `group`.

    >>> part_of("encoder.layers.3.mlp.fc1.weight"), part_of("visual_projection.weight")
    ('encoder.layers.3', 'visual_projection')
    """
    return block_of(name) or name.partition(".")[0]


def norms(products: Tensor) -> Tensor:
    """‖τ_t‖ [T] of a matrix [T, T]."""
    return products.diagonal().clamp_min(0).sqrt()


def zero_tasks(matrix: Gram) -> list[str]:
    """Tasks whose model is the base: they have no angle with any other."""
    return [task for task, own in zip(matrix.tasks, norms(matrix.total), strict=True) if own == 0]


def cosines(products: Tensor) -> Tensor:
    """cos φ_st = G_st / √(G_ss·G_tt) in [−1, 1], [T, T]; NaN where a task vector is zero."""
    length = norms(products)
    ratio = products / length / length[:, None]
    ratio = torch.where((length[:, None] > 0) & (length > 0), ratio.clamp(-1, 1), torch.nan)
    diagonal = torch.where(length > 0, 1.0, torch.nan).to(ratio)
    return ratio.diagonal_scatter(diagonal)


def angles(products: Tensor) -> Tensor:
    """φ_st = arccos(cos φ_st) in degrees, [T, T]; NaN where a task vector is zero.

    The origin is the base (the models' common initialisation).

    >>> angles(torch.tensor([[1.0, 1.0], [1.0, 2.0]]).double()).round().tolist()
    [[0.0, 45.0], [45.0, 0.0]]
    """
    return cosines(products).arccos().rad2deg()


def distances(products: Tensor) -> Tensor:
    """‖τ_s − τ_t‖ = ‖θ_s − θ_t‖, [T, T]. Near 1e-8·‖τ‖ it is rounding."""
    own = products.diagonal()
    return (own[:, None] + own - 2 * products).clamp_min(0).sqrt()


def stock(products: Tensor) -> tuple[float, float]:
    """Model Stock's (mean pairwise cosine c, ratio T·c / (1 + (T − 1)·c)).

    The merged tensor is ratio·mean_t(θ_t) + (1 − ratio)·θ₀; the published rule is a tensor at a
    time. Both are NaN where a task vector is zero.

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

    With L^T L = G and u = s·a, min_s ‖Lu‖² + (Σu − 1)² = ‖La‖²/(1 + ‖La‖²), which grows with
    ‖La‖: one least-squares problem without a constraint (non-negative where `convex`), and a is
    its solution divided by its sum. A singular G (equal models) has a solution too.

    Args:
        products: [T, T].
        convex: a_t ≥ 0, the point of the simplex; else any sign, the point of the affine hull.

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
    found = nnls(rows, target)[0] if convex else np.linalg.lstsq(rows, target, rcond=None)[0]
    return torch.from_numpy(found / found.sum())
