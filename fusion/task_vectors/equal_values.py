"""Rules for equal values, for every method that compares entries of task vectors.

Task vectors of 16-bit checkpoints have few distinct values, so that many entries are equal. What
becomes of them must not depend on the order of the experts, on how a model is cut into shards and
chunks, or on the device:

* **A cut by rank** is a threshold: the value of the k-th entry. Equal entries are kept or left out
  together. The threshold is found by `streaming_topk.py`, exactly.
* **A sign** is elected by a sum whose bits do not depend on the order of its terms: `exact_sum`. A
  sum of exactly zero elects no sign.
* **Ranks** of equal entries are their mean rank (DELLA).
* **A choice** among entries of equal magnitude takes the positive one (MagMax).

Options named `compat` follow other code instead where their docstrings say so.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exact_sum(rows: Tensor) -> Tensor:
    """Sum [n] of rows [T, n], in float64; its bits do not depend on the order of the rows.

    Rows of float32 and less are exact in float64, and so is their sum, as long as the magnitudes at
    an entry span less than 2²⁹/T. Rows of float64 are added in ascending order, entry by entry.

    >>> rows = torch.tensor([[1.0, 1.0], [2.0**-25, 0.0], [-1.0, -1.0]])
    >>> exact_sum(rows).tolist(), rows.sum(0).tolist()
    ([2.9802322387695312e-08, 0.0], [0.0, 0.0])
    """
    terms = in_fixed_order(rows)
    total = torch.zeros_like(terms[0], dtype=torch.float64, memory_format=torch.contiguous_format)
    for row in terms:
        total.add_(row)
    return total


def in_fixed_order(rows: Tensor) -> Tensor:
    """Rows [T, n] whose sum in float64 does not depend on the order of `rows`: see `exact_sum`."""
    return rows.sort(0).values if rows.dtype == torch.float64 else rows


def elected_sign(rows: Tensor) -> Tensor:
    """Sign [n] of the sum of rows [T, n]: −1, 0 or 1, in the dtype of the rows.

    >>> elected_sign(torch.tensor([[1.0, -2.0, 1.0], [-1.0, 1.0, 2.0**-25]])).tolist()
    [0.0, -1.0, 1.0]
    """
    return exact_sum(rows).sign_().to(rows.dtype)
