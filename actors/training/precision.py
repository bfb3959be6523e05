"""Set the precision of matrix products and convolutions, equal in every computing process."""

from __future__ import annotations

import torch


def exact_products() -> None:
    """On GPUs, compute float32 operations in float32, and accumulate 16-bit products in float32.

    By default cuDNN convolves in TF32 while products are in float32. Then the resident model and
    the merged layers, whose convolution is a product, would differ by 1e-3. No effect on a CPU.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


NO_BF16 = "this CPU has no instructions for bf16, which is then slower than fp32"


def has_bf16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 by instructions of its own."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
