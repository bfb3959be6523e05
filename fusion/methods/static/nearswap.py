"""NearSwap: move each entry of the base towards one expert, by at most a fixed step."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from fusion.methods.static.coefficients import one_expert
from fusion.task_vectors.elementwise import combined
from fusion.task_vectors.task_vectors import TaskVectors


def nearswap(
    vectors: TaskVectors,
    *,
    t: Annotated[float, Interval(ge=0)] = 1e-4,
    expert: str | None = None,
) -> dict[str, Tensor]:
    """NearSwap: θ_j = (1 − w_j)·θ₀,j + w_j·θ_e,j, w_j = min(1, t/|θ_e,j − θ₀,j|).

    Entries that differ by at most t are swapped for the expert's; all others move towards it by t.
    So it is θ₀ + clamp(τ_e, −t, t), and is computed as that.

    Args:
        vectors: base and task vectors.
        t: the largest step of an entry. 0 gives the base. Default 1e-4, that of the author's model
            QuartetAnemoi-70B-t0.0001 (mergekit has no default).
        expert: name of the expert. Default: the only one.

    Raises:
        InputError: an unknown expert, or none named among several.

    mergekit counts differences below 1e-6 as 1e-6, so that for t < 1e-6 such entries move less
    there. For larger t both are the same. Memory beside base, task vectors and result: a few
    chunks.

    Source: mergekit 0.1.4 (`nearswap`); alchemonaut, model card of QuartetAnemoi-70B-t0.0001.

    >>> import torch
    >>> experts = {"a": {"w": torch.tensor([0.5, -3.0, 0.0])}}
    >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(3)}, experts)
    >>> nearswap(v, t=1.0)["w"].tolist()
    [0.5, -1.0, 0.0]
    """
    chosen = vectors.only(one_expert("nearswap", vectors.tasks, expert))
    return combined(chosen, lambda rows: rows[0].clamp_(-t, t))
