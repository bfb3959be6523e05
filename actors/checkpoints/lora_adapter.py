"""Experts that are PEFT adapters: LoRA, and linearised LoRA (L-LoRA).

An adapter folder holds `adapter_config.json` and either `adapter_model.safetensors`, as written by
`peft.PeftModel.save_pretrained`, or `linearized_adapter_model.safetensors`. The task vector of an
adapted weight is the product of two small factors, τ = up·down, with LoRA's scale in `up`. It is
not computed as (θ₀ + τ) − θ₀, which would round twice.

A LoRA layer is y = (W₀ + s·B·A)x + b with s = α/r (`use_rslora`: α/√r). L-LoRA (arXiv:2310.04742)
replaces it by its first-order expansion in φ = (A, B) about the initial φ₀ = (A₀, B₀). The
expansion is linear in x too, so it equals a layer with another weight, exactly:

    τ = s·(B₀A₀ + (B − B₀)A₀ + B₀(A − A₀)) = s·[B, B₀]·[A₀; A − A₀]

of twice the rank; it is s·B·A₀ if B₀ = 0, as PEFT initialises it. Base weight and bias cancel.

`base_model_name_or_path` is not checked; names and shapes are, against the pool's base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Adapted, Checkpoint, Factors
from actors.checkpoints.lora_config import rank_and_scale, read_lora_config
from actors.checkpoints.lora_tensors import Parts, is_there, sort_out, weights_file
from actors.checkpoints.sources import ADAPTER_CONFIG, resolve
from actors.files.safetensors_header import header, mapped, unwrapped
from fusion.errors import InputError, reading
from fusion.task_vectors.low_rank import product
from fusion.task_vectors.task_vectors import check_finite

if TYPE_CHECKING:
    from peft import LoraConfig


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter: it has an `adapter_config.json`."""
    return is_there(folder / ADAPTER_CONFIG)


def inspect_adapter(
    source: str, name: str, base: Checkpoint, canonical: Callable[[str], str]
) -> Checkpoint:
    """Inspect an adapter's configuration and headers, as a change of the base; reads no weight.

    `tensors` of the result are those that the adapter brings whole (`modules_to_save`, trained
    biases); `factors` are the adapted weights; both in the base's order. The configuration is the
    base's. Parts of a text tower go to `rest`: whole ones must equal the base's and factors must be
    zero, which is checked when weights are read.

    Args:
        source: a folder or a hub id.
        name: the spec's field, for example "pool.experts.mnist".
        base: the pool's base, inspected.
        canonical: the family's function from a name in a file to the canonical name.

    Raises:
        InputError: an invalid configuration, or one that is not a plain added product; pickled,
            missing or damaged weights; tensors that the base lacks, of other shapes, or without
            their other factor.
    """
    folder = resolve(source, what=name)
    with reading(f"{name}: {folder}"):
        return inspected(source, folder, name, base, canonical)


def inspected(
    source: str, folder: Path, name: str, base: Checkpoint, canonical: Callable[[str], str]
) -> Checkpoint:
    """Inspect the adapter in a folder. See `inspect_adapter`."""
    config = read_lora_config(folder, name)
    file = weights_file(folder, name)
    parts, whole = sort_out(unwrapped(header(file, name)), file, name, canonical)
    known = {**base.tensors, **base.rest}
    factors: dict[str, Adapted] = {}
    for module, found in parts.items():
        target = canonical(f"{module}.weight")
        about = next(iter(found.values()))
        if target not in known:
            target = f"{module}.weight"
        if target not in known:
            raise InputError(f"{name}: {file}: tensor {about.key!r}: {target!r} not in the base")
        if target in factors or target in whole:
            raise InputError(
                f"{name}: {file}: tensor {about.key!r}: {target!r} is there twice; once, and either"
                " as factors or whole, needed"
            )
        factors[target] = adapted(found, module, known[target].shape, config, name)
    for target, info in whole.items():
        if target not in known:
            raise InputError(f"{name}: {file}: tensor {info.key!r}: {target!r} not in the base")
        if info.shape != known[target].shape or not info.dtype.is_floating_point:
            raise InputError(
                f"{name}: {file}: tensor {info.key!r}: {info.dtype} {list(info.shape)};"
                f" the base has {list(known[target].shape)}"
            )
    text = {
        info.key: info
        for target, low in factors.items()
        if target not in base.tensors
        for info in (low.up, *(low.first or ())[1:])
    }
    return Checkpoint(
        name,
        source,
        folder,
        base.config,
        {target: whole[target] for target in base.tensors if target in whole},
        {**{target: whole[target] for target in base.rest if target in whole}, **text},
        {},
        {target: factors[target] for target in base.tensors if target in factors},
        base.fields,
    )


def adapted(
    found: Parts, module: str, shape: tuple[int, ...], config: LoraConfig, name: str
) -> Adapted:
    """Check one weight's factors against its shape in the base and the configured rank.

    Raises:
        InputError: one factor without the other, or of another shape.
    """
    table = "embedding_A" in found or "embedding_B" in found
    names = ("embedding_A", "embedding_B") if table else ("A", "B")
    for part, other in (names, names[::-1]):
        if part not in found:
            about = found[other]
            raise InputError(
                f"{name}: {about.file}: tensor {about.key!r}: no lora_{part} beside it; both needed"
            )
    rank, scale = rank_and_scale(config, module)
    out, *inner = reversed(shape) if table else shape
    wanted = {"A": (rank, *inner), "B": (out, rank, *(1 for _ in inner[1:]))}
    for part, info in found.items():
        if len(shape) not in (2, 4) or info.shape != wanted[part.removeprefix("embedding_")[0]]:
            raise InputError(
                f"{name}: {info.file}: tensor {info.key!r}: shape {list(info.shape)}; the base's"
                f" weight {list(shape)} and rank {rank} of {ADAPTER_CONFIG} need A"
                f" {list(wanted['A'])}, B {list(wanted['B'])}"
            )
        if not info.dtype.is_floating_point:
            raise InputError(
                f"{name}: {info.file}: tensor {info.key!r}: dtype {info.dtype};"
                " floating point needed"
            )
    first = (found["A0"], found["B0"]) if "A0" in found else None
    return Adapted(found[names[0]], found[names[1]], scale, table, first)


def read_factors(
    checkpoint: Checkpoint, names: Collection[str] | None = None, *, strict: bool = True
) -> Iterator[tuple[str, Factors]]:
    """Yield (canonical name, factors) of an inspected adapter, in the base's order.

    In float32, or float64 if the file is (`Adapted.dtype`), of rank `Adapted.rank`; new memory.

    Args:
        checkpoint: an inspected checkpoint; a full model yields nothing.
        names: names of fused tensors; None: all.
        strict: see `mapped`.

    Raises:
        InputError: NaN or Inf, or a file that changed since it was inspected.
    """
    wanted = {
        name: low for name, low in checkpoint.factors.items() if names is None or name in names
    }
    infos = {f"{name}:{at}": i for name, low in wanted.items() for at, i in enumerate(low.infos)}
    tensors = mapped(infos, checkpoint.name, strict=strict)
    for name, low in wanted.items():
        found = []
        for info in low.infos:
            tensor = next(tensors)[1]
            check_finite(tensor, info.key, f"{checkpoint.name}: {info.file}")
            found.append(tensor.to(low.dtype).flatten(1))
        yield name, joined(found, low)


def joined(found: list[Tensor], low: Adapted) -> Factors:
    """Join A, B and, if linearised, A₀, B₀ to one pair of factors: see the module's formula."""
    down, up = found[:2]
    if low.first is not None:
        first, initial = found[2:]
        down, up = torch.cat([first, down - first]), torch.cat([up, initial], dim=1)
    if low.table:
        down, up = up.T, down.T
    return Factors(down.contiguous(), (up * low.scale).contiguous())


def multiply(factors: Factors, out: Tensor) -> Tensor:
    """out = up·down, in the dtype of `out` and the shape of the weight.

    Task vectors that stay factored use this product too, so that both have the same bits.
    """
    up, down = factors.up.to(out.dtype), factors.down.to(out.dtype)
    return out.copy_(product(down, up).view(out.shape))
