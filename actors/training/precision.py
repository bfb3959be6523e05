"""One precision of products and convolutions in every process that computes."""

from __future__ import annotations

import torch


def exact_products() -> None:
    """Let GPUs compute in float32 what is in float32, and sum 16-bit products in float32.

    By default cuDNN convolves in TF32 while products are in float32: the resident model and the
    merged layers, whose convolution is a product, would be 1e-3 apart. Nothing changes on a CPU.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
