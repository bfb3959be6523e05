"""Precision of the products of activations: a switch for the passes of a model.

A pass runs within `products(precision, device)`. There linear layers, convolutions and attention
multiply in that precision, those of the library and merged ones alike. What is marked `exact`
multiplies in its own dtype all the same: merged weights and the sums of ∂L/∂coding.

* `fp32`: nothing is changed; float32 is multiplied in float32.
* `tf32`: operands are rounded to TF32 (10 bits of mantissa) on a GPU, sums are float32. The switch
  is the process's, so a process runs one pass at a time.
* `bf16`: operands and results of products are bfloat16, sums are float32 (`torch.autocast`).
  Weights, the residual stream and norms stay in the model's dtype. The switch is the thread's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Literal, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda")


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context manager: products of activations on `device` are computed in this precision."""
    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif precision == "tf32":
        with tf32(True):
            yield
    else:
        yield


def current(device: torch.device) -> Precision:
    """The precision that products of activations on `device` are computed in here and now.

    >>> with products("bf16", torch.device("cpu")):
    ...     current(torch.device("cpu"))
    'bf16'
    """
    if device.type in DEVICES and torch.is_autocast_enabled(device.type):
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "fp32"


@contextmanager
def backward_products(precision: Precision) -> Iterator[None]:
    """Context manager: as `products`, around a backward pass.

    Products in bfloat16 have gradients in bfloat16 of themselves, outside of `torch.autocast`.
    """
    with tf32(True) if precision == "tf32" else nullcontext():
        yield


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Context manager: matrix products and convolutions in TF32, or in float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose products are computed in their operands' dtype, within any `products`."""

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        on = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        if not on and not torch.backends.cuda.matmul.allow_tf32:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for device in on:
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(tf32(False))
            return function(*args, **kwargs)

    return computed


def operand(x: Tensor) -> Tensor:
    """Activations as a product takes them: float32 ones in bfloat16 within `products("bf16")`."""
    device = x.device.type
    if x.dtype == torch.float32 and device in DEVICES and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x
