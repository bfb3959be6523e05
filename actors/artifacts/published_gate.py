"""Published gates: those of DAWE's original code, as state dicts without a manifest.

A family says how the outputs of a layer-wise one are ordered (`PublishedLayout`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from actors.artifacts.gate_file import Manifest, build
from actors.files.safetensors_header import read_whole
from fusion.errors import InputError, reading
from fusion.methods.learned.gate import Gate, regroup, shapes

INITIAL = 0.3
"""All coefficients of the published gates at the start."""

REST = "rest"
"""Key of a column that is added: the initial coefficient, whatever the features."""

CONVERT = (
    "which can run code when it is read; convert a file that you trust: python -c"
    ' "import torch; from safetensors.torch import save_file; save_file(torch.load(%r,'
    " map_location='cpu', weights_only=False).state_dict(), 'gate.safetensors')\""
)


@dataclass(frozen=True)
class PublishedLayout:
    """Order of the outputs of published layer-wise gates for one model."""

    keys: tuple[str, ...]
    """Of the columns of a task."""
    sources: Mapping[str, str | None]
    """Canonical tensor name -> the key whose coding it takes, in canonical order; None: no column
    is of it, and it keeps the initial coefficient."""
    about: str
    """The keys, for messages: "158 keys of 12 blocks"."""


def import_gate(
    tensors: Mapping[str, Tensor],
    *,
    tasks: tuple[str, ...],
    layout: PublishedLayout | None,
    extractor: str,
    extractor_hash: str,
    preprocessing: str,
    steps: int = 1000,
    where: str = "published gate",
) -> tuple[Gate, Manifest]:
    """A gate from the state dict of a published one, and its manifest.

    M outputs: K = len(tasks) of a task-wise gate, which fits models of any size; K·L of a
    layer-wise one, L the layout's keys, task-major. Layer-wise columns come out under canonical
    names, all of the layout's (`fit` drops what a pool lacks).

    Args:
        tensors: `0.weight` [d, d], `0.bias` [d], `2.weight` [M, d], `2.bias` [M].
        tasks: the experts' names, in the order of training. The published eight of images: SUN397,
            Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD; of GLUE: cola, mnli, mrpc, qnli, qqp,
            rte, sst2, stsb.
        layout: of the pool's model; None: of its family only task-wise gates are published.
        extractor: for the manifest, as are the next two.
        extractor_hash: of the extractor's files.
        preprocessing: how rows reach it.
        steps: of training; default 1000, the published.
        where: begins each message.

    Raises:
        InputError: other tensors, or shapes that match neither layout.
    """
    width, outputs = sizes(tensors, where)
    count = len(tasks)
    layered = layout is not None and outputs == count * len(layout.keys)
    if not layered and outputs != count:
        raise InputError(f"{where}: {misfit(outputs, count, layout)}")
    published = Manifest(
        method="dawe",
        extractor=extractor,
        extractor_hash=extractor_hash,
        preprocessing=preprocessing,
        width=width,
        tasks=tasks,
        grouping="layer" if layered else "task",
        keys=layout.keys if layered and layout is not None else (),
        depth=2,
        scale=INITIAL,
        softmax=False,
        base_weight=False,
        steps=steps,
    )
    floats = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
    if not layered or layout is None:
        return build(floats, published, where), published
    if None in layout.sources.values():
        floats, published = with_rest(floats, published)
    gate = build(floats, published, where)
    column: dict[str | None, int] = {key: index for index, key in enumerate(published.keys)}
    column[None] = len(published.keys) - 1
    picked = regroup(gate, [column[key] for key in layout.sources.values()])
    return picked, replace(published, keys=tuple(layout.sources))


def misfit(outputs: int, tasks: int, layout: PublishedLayout | None) -> str:
    """What is wrong with the number of a gate's outputs."""
    said = f"tensor '2.weight': {outputs} outputs; {tasks} tasks need {tasks} (task-wise)"
    if layout is None:
        return said
    return (
        f"{said} or {tasks * len(layout.keys)} (layer-wise: {layout.about}); a layer-wise gate fits"
        " models of one size, a task-wise one of any"
    )


def with_rest(
    tensors: Mapping[str, Tensor], manifest: Manifest
) -> tuple[dict[str, Tensor], Manifest]:
    """A layer-wise gate with one more column a task, last: the initial coefficient."""
    tasks, keys = len(manifest.tasks), len(manifest.keys)
    weight, bias = tensors["2.weight"], tensors["2.bias"]
    rows = weight.view(tasks, keys, -1)
    more = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1).flatten(0, 1)
    constant = torch.full((tasks, 1), INITIAL, dtype=bias.dtype)
    biases = torch.cat([bias.view(tasks, keys), constant], dim=1).flatten()
    found = {**tensors, "2.weight": more, "2.bias": biases}
    return found, replace(manifest, keys=(*manifest.keys, REST))


def sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """d and M of a published gate.

    Raises:
        InputError: other tensors, or shapes that contradict each other.
    """
    expected = tuple(shapes(1, 1, 2))
    if {*tensors} != {*expected}:
        raise InputError(f"{where}: tensors {sorted(tensors)}; {list(expected)} needed")
    last = tensors["2.weight"]
    if last.ndim != 2:
        raise InputError(f"{where}: tensor '2.weight': shape {list(last.shape)}; [M, d] needed")
    outputs, width = last.shape
    for name, shape in shapes(width, outputs, 2).items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"{where}: tensor {name!r}: shape {list(tensors[name].shape)};"
                f" {list(shape)} goes with '2.weight' {list(last.shape)}"
            )
    return width, outputs


def read_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a published gate: a safetensors file, or a `.pt` with a state dict.

    Executes no code: a `.pt` is read by torch's restricted unpickler. The published files
    themselves are pickled modules, which are refused.

    Raises:
        InputError: missing, damaged, a pickled module, or not a state dict.
    """
    from safetensors.torch import load

    data = read_whole(path, str(path))
    if path.suffix == ".safetensors":
        with reading(f"{path}: truncated or not a safetensors file"):
            return dict(load(data))
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises undocumented exceptions on damaged bytes
        if "GLOBAL" in str(error):  # torch's word for a class that it refuses to build
            raise InputError(
                f"{path}: a pickled module or other object, {CONVERT % str(path)}"
            ) from None
        raise InputError(f"{path}: damaged, or not a file of torch.save") from None
    fits = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not fits:
        kind = type(content).__name__
        raise InputError(f"{path}: holds a {kind}; a state dict (name -> tensor) needed")
    return dict(content)
