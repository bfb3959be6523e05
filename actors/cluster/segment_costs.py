"""Cost of a segment of a model in one micro-batch: what a chain is cut into shards by.

In multiplications of a matrix product. With B rows, w multiplications a row in a forward pass,
T experts, P elements merged, and n tensors:

  training   = 3·B·w + 3·(T + 2)·P·MERGED + n·TENSOR
  evaluation = B·w + n·TENSOR/3

* Passes: in training, outputs, gradients of inputs and gradients of weights take w each.
* Merging: weights are merged in the forward pass and again in the backward pass, then ∂L/∂coding is
  taken. Each reads T task vectors, and reads or writes two tensors more. P is the segment's
  parameters; of tables that are only looked up in, it is what B rows look up.
* Tensors: the small operations of a layer take a time of their own, whatever its size.

A static model that is only evaluated is merged once for all its batches, which is not counted.
Task vectors that stay factors are counted by the elements of their factors.
"""

from __future__ import annotations

from dataclasses import dataclass

MERGED = 16.0
"""Multiplications that take as long as one element of a merge. Origin: on one core of a Xeon with
AVX-512, a product of 512 × 1024 by 1024 × 1024 took 0.024 ns a multiplication, a merge 0.40 to 0.51
ns for each of the T + 2 elements, ∂L/∂coding 0.26 ns (T = 2 and 8): 11 to 22, 16 between. The
memory of an H100 gives about 40 in float32, which nothing here uses."""

TENSOR = 8e6
"""Multiplications that take as long as the small operations of one tensor, forward and backward:
0.2 ms. Origin: the shares of four shards' CPU time in `benchmarks/text/cuts.py`, in two settings,
fitted by hand; 6e6 and 1e7 fit about as well."""


@dataclass(frozen=True)
class Effort:
    """What a segment does in a micro-batch."""

    work: float
    """Multiplications a row in a forward pass."""
    tensors: int
    """Tensors that are merged."""
    elements: float
    """Elements of the base that are merged."""
    factors: float | None = None
    """Elements of all experts' factors; None: task vectors are dense."""


def segment_cost(effort: Effort, rows: int, experts: int, training: bool) -> float:
    """Multiplications in one micro-batch; the formulas at the top of this file.

    Args:
        effort: of the segment.
        rows: B.
        experts: T.
        training: whether layers are merged and a backward pass follows.

    >>> segment_cost(Effort(work=100, tensors=0, elements=0), rows=8, experts=2, training=False)
    800.0
    >>> segment_cost(Effort(work=100, tensors=0, elements=10), rows=8, experts=2, training=True)
    4320.0
    """
    if not training:
        return rows * effort.work + effort.tensors * TENSOR / 3
    merged = (experts + 2) * effort.elements if effort.factors is None else effort.factors
    return 3 * rows * effort.work + 3 * merged * MERGED + effort.tensors * TENSOR
