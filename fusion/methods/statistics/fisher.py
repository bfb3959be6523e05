"""Fisher merging: average of experts, weighted by the diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

from fusion.methods.statistics.collect import StatisticsRequest, checked
from fusion.task_vectors.elementwise import gathered, shares, spans, totals
from fusion.task_vectors.sharded_reduce import Survey, run_surveys
from fusion.task_vectors.task_vectors import TaskVectors, accumulator
from fusion.task_vectors.threads import in_threads

Estimate: TypeAlias = Literal["sampled", "exact", "batch"]


def fisher(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    normalize: bool = True,
    floor: Annotated[float, Interval(ge=0)] = 1e-6,
    estimate: Estimate = "sampled",
    examples: Annotated[int, Interval(ge=1)] = 256,
    batch_size: Annotated[int, Interval(ge=1)] = 32,
    seed: int = 0,
    survey: tuple[float, ...] | None = None,
) -> dict[str, Tensor]:
    """Fisher merging: average of the experts, weighted by the diagonal Fisher information F_t.

    θ_j = Σ_t c_t (F_tj + ε) θ_tj / Σ_t c_t (F_tj + ε), computed as θ₀ + Σ c (F + ε) τ / Σ c (F +
    ε). If all weights are zero (ε = 0), experts have equal weight.

    Args:
        vectors: base and task vectors.
        statistics: F, tensor name -> [T, *shape]; of each expert on its own task.
        normalize: c_t is proportional to 1/(‖F_t‖ + ε), so that no expert dominates by the scale of
            its gradients alone; false: c_t = 1/T. Default true, as in the released code.
        floor: ε. Default 1e-6, FusionBench's.
        estimate: how F is estimated. `sampled` (default): E_x (∂ log p(y|x))² with one label y for
            each image, drawn from the model's own p(y|x), as in the paper for many classes.
            `exact`: the expectation over all C classes, at C times the cost. `batch`:
            FusionBench's, which sums Σ_c √p_c·log p_c over a batch before squaring and divides by
            the number of images; it is cheap, depends on `batch_size`, and is not the Fisher
            information.
        examples: images of each task's fit split, drawn with `seed`. Default 256, FusionBench's.
        batch_size: for `batch` only. Default 32, FusionBench's.
        seed: of the drawn images and labels.
        survey: ‖F_t‖ over the whole model, if `vectors` is one shard of it.

    Raises:
        InputError: statistics that are missing, not finite, or of another shape.

    Source: Matena & Raffel 2022, arXiv:2111.09832, §3, eq. 5 and 6. Deviation: images are drawn at
    random; FusionBench takes the first images of a data set.

    >>> experts = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([3.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(1)}, experts)
    >>> f = {"w": torch.tensor([[3.0], [1.0]])}
    >>> fisher(v, statistics=f, normalize=False, floor=0.0)["w"].tolist()  # (3·1 + 1·3) / 4
    [1.5]
    """
    if survey is None:
        survey = run_surveys([fisher_survey(vectors, statistics=statistics, normalize=normalize)])
    inverse = [1 / (norm + floor) if normalize and norm + floor else 1.0 for norm in survey]
    factors = [each / sum(inverse) for each in inverse]

    def fill(name: str, out: Tensor) -> None:
        deltas = vectors.deltas[name]
        found = checked("fisher", statistics, name, deltas.shape, deltas.device)
        weigh(out, vectors.base[name], deltas, found, factors, floor)

    return vectors.build(fill)


def fisher_survey(
    vectors: TaskVectors,
    *,
    statistics: Mapping[str, Tensor],
    normalize: bool = True,
) -> Survey[tuple[float, ...]]:
    """Norms ‖F_t‖ over the whole model; statistics are not read if `normalize` is false."""
    tasks = len(vectors.tasks)
    if not normalize:
        return (1.0,) * tasks

    def line(name: str, deltas: Tensor) -> Tensor:
        found = checked("fisher", statistics, name, deltas.shape, deltas.device)
        return totals(found, lambda rows: rows.double().square().sum(1))

    lines = yield gathered(vectors, line, tasks)
    return tuple(lines.sum(0).sqrt().tolist())


def fisher_request(
    *, estimate: Estimate, examples: int, batch_size: int, seed: int, **rest: object
) -> StatisticsRequest:
    """The statistics that `fisher` needs."""
    size = batch_size if estimate == "batch" else 1
    return StatisticsRequest("fisher", examples, size, seed, {"estimate": estimate})


def weigh(
    out: Tensor, base: Tensor, deltas: Tensor, found: Tensor, factors: list[float], floor: float
) -> None:
    """Fisher-weighted average of one tensor, chunk by chunk: θ₀ + Σ c (F + ε) τ / Σ c (F + ε)."""
    dtype = accumulator(out.dtype, base.dtype, deltas.dtype, found.dtype)
    target = torch.empty(base.numel(), dtype=out.dtype, device=out.device)
    origin = base.reshape(-1)
    rows, weights = deltas.reshape(len(deltas), -1), found.reshape(len(found), -1)
    scale = torch.tensor(factors, dtype=dtype, device=out.device)[:, None]

    def work(portion: slice) -> None:
        for span in spans(portion, rows):
            w = (weights[:, span].to(device=out.device, dtype=dtype) + floor) * scale
            total = w.sum(0)
            w = torch.where(total > 0, w, 1.0)
            moved = (w * rows[:, span].to(dtype)).sum(0) / w.sum(0)
            torch.add(origin[span].to(dtype), moved, out=target[span])

    in_threads(work, shares(rows))
    out.copy_(target.view(out.shape))


class Squares:
    """Sum of squared gradients over backward passes, in float32, for each parameter.

    Args:
        parameters: name -> parameter; its gradient is read and then released.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.sums = {
            name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()
        }
        self.images = 0

    def add(self, images: int) -> None:
        """Add the squares of the current gradients, which belong to `images` further samples."""
        self.images += images
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                self.sums[name].addcmul_(gradient, gradient)
                parameter.grad = None

    def means(self) -> dict[str, Tensor]:
        """name -> F, the sums divided by the number of samples."""
        return {name: total / max(1, self.images) for name, total in self.sums.items()}
