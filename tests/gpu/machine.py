"""The machine: versions, memory, and the rates of copies and products, which floors are made of."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from benchmarks.fusion.layers import medians
from tests.gpu.places import Place
from tests.gpu.report import Found, Part, Row

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
SHAPE = (12_800, 768, 3_072)
"""Of the product: tokens of 256 images at ViT-B/32, its width, its MLP's."""


@dataclass
class Rates:
    """Measured once, when first asked for."""

    place: Place
    tiny: bool = False
    known: dict[str, float] = field(default_factory=dict)

    def repeated(self, call: object) -> float:
        """Median seconds of a call."""
        return medians({"call": call}, 2 if self.tiny else 5, self.place.device)["call"]

    @property
    def copy(self) -> float:
        """Bytes a second that a copy on the device reads and writes."""
        if "copy" not in self.known:
            size = {"cuda": 1 << 28, "cpu": 1 << 24, "pretend": 1 << 20}[self.place.kind]
            here = torch.zeros(size >> (8 if self.tiny else 0), device=self.place.device)
            there = torch.empty_like(here)
            self.known["copy"] = 2 * here.nbytes / self.repeated(lambda: there.copy_(here))
        return self.known["copy"]

    def flops(self, precision: str) -> float:
        """FLOPs a second of a product in `fp32`, `tf32` or `bf16`."""
        if precision not in self.known:
            rows, *sizes = SHAPE
            rows = rows if self.place.kind == "cuda" else 256
            inner, outer = (size >> 4 for size in sizes) if self.tiny else sizes
            dtype, device = DTYPES[precision], self.place.device
            left = torch.ones(rows, inner, dtype=dtype, device=device)
            right = torch.ones(inner, outer, dtype=dtype, device=device)
            with tf32(precision == "tf32"):
                seconds = self.repeated(lambda: left @ right)
            self.known[precision] = 2 * rows * inner * outer / seconds
        return self.known[precision]


class tf32:
    """Within it, float32 products and convolutions may be computed in TF32, or not."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __enter__(self) -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        self.before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self.wanted

    def __exit__(self, *_: object) -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        matmul.allow_tf32, cudnn.allow_tf32 = self.before


def driver() -> str:
    """Clocks and memory, as nvidia-smi has them."""
    asked = "name,driver_version,clocks.max.sm,clocks.max.mem,memory.total,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer"
    return "; ".join(done.stdout.strip().splitlines())


def rows_of(place: Place, rates: Rates) -> Iterator[Row]:
    """See the module."""
    versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
    if place.kind == "cuda":
        versions += f", cuDNN {torch.backends.cudnn.version()}"
        yield Row("driver", lambda: Found((driver(),)))
    yield Row("versions", lambda: Found((versions,)))
    if place.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        said = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Row("memory", lambda: Found((said,)))
    yield Row("copy", lambda: Found((f"{rates.copy / 1e9:.3g} GB/s, read and written",)))
    for precision in DTYPES:
        if precision != "tf32" or place.device == "cuda":
            yield Row(
                f"product, {precision}",
                lambda precision=precision: Found(
                    (f"{rates.flops(precision) / 1e12:.3g} TFLOP/s",)
                ),
            )


def part(place: Place, rates: Rates) -> Part:
    """What this machine is."""
    return Part("machine", ("what", "found"), 15, lambda: rows_of(place, rates))
