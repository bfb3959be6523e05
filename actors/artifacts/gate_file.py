"""Gate files: safetensors whose metadata field `gate` holds a manifest of the gate."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actors.artifacts.learned_file import packed, unpacked
from actors.files.atomic import replacing
from actors.files.safetensors_header import read_whole
from fusion.errors import InputError
from fusion.methods.learned.gate import DEPTHS, Gate, regroup, shapes

FORMAT = 1
KEY = "gate"


@dataclass(frozen=True)
class Manifest:
    """Manifest of a gate: what it was trained on, its shape and options."""

    method: str
    extractor: str
    """Source of the frozen network whose features the gate reads, as in the sweep file."""
    extractor_hash: str
    preprocessing: str
    """Preprocessing of the extractor's images."""
    width: int
    """Width of the features."""
    tasks: tuple[str, ...]
    """Names of the experts: the T axis."""
    grouping: str
    """`task`: G = 1; `layer`: G = the number of `keys`."""
    keys: tuple[str, ...]
    """Canonical tensor names: the G axis; empty for `task`."""
    depth: int
    scale: float
    """λ₀, the coefficient at the start of training."""
    softmax: bool
    base_weight: bool
    steps: int
    """Training steps."""
    format: int = FORMAT

    @property
    def groups(self) -> int:
        """G, the number of groups."""
        return len(self.keys) or 1


def dump(gate: Gate, manifest: Manifest) -> bytes:
    """Bytes of a gate file: tensors in float32, and the manifest.

    Raises:
        InputError: the manifest does not match the gate, or values are not finite.
    """
    about = json.loads(json.dumps(asdict(manifest)))  # lists, as in a file
    match(gate, parse(about, "gate"), "gate")
    state = gate.state_dict()
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in state.items()}
    check_tensors(tensors, manifest, "gate")
    return packed(tensors, KEY, about)


def load(data: bytes, where: str) -> tuple[Gate, Manifest]:
    """Gate and manifest of a file's bytes; `where` begins each message.

    Raises:
        InputError: damaged; missing, unknown or wrong fields of the manifest; missing, unknown,
            mis-shaped or non-finite tensors.
    """
    tensors, about = unpacked(data, KEY, where)
    manifest = parse(about, where)
    return build(tensors, manifest, where), manifest


def has_manifest(path: Path) -> bool:
    """Whether a file is safetensors with a manifest; published gates have none."""
    if not path.is_file():  # opening a pipe would block
        return False
    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def write(path: Path, data: bytes) -> None:
    """Write a gate file atomically; raises InputError as `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def read(path: Path, where: str) -> tuple[Gate, Manifest]:
    """Gate and manifest of a file; raises InputError as `load`, or if it cannot be read."""
    return load(read_whole(path, f"{where}: {path}"), f"{where}: {path}")


def fit(
    gate: Gate,
    manifest: Manifest,
    *,
    tasks: tuple[str, ...],
    groups: tuple[str, ...],
    extractor_hash: str,
    width: int,
    where: str,
) -> Gate:
    """Adapt a gate to a pool: returns the gate, or a copy with the pool's groups picked by name.

    A task-wise gate works with any backbone. A layer-wise gate works if it has every group of the
    pool; further groups are dropped. `preprocessing` is not compared here.

    Args:
        gate: gate of a file.
        manifest: manifest of the same file.
        tasks: the pool's experts, in order.
        groups: the pool's tensor names, in order: `TaskVectors.groups`.
        extractor_hash: hash of the extractor in use.
        width: width of its features.
        where: begins each message.

    Raises:
        InputError: other features, other tasks, tasks in another order, a missing group.
    """
    match(gate, manifest, where)
    if manifest.width != width:
        raise InputError(
            f"{where}: width: {manifest.width} (features of {manifest.extractor!r});"
            f" the extractor at hand gives {width}"
        )
    if manifest.extractor_hash != extractor_hash:
        raise InputError(
            f"{where}: extractor_hash: {manifest.extractor_hash!r} (of {manifest.extractor!r});"
            f" the extractor at hand has {extractor_hash!r}; a gate reads the features that it"
            " was trained on"
        )
    check_tasks(manifest.tasks, tasks, where)
    if manifest.grouping == "task" or manifest.keys == groups:
        return gate
    column = {key: index for index, key in enumerate(manifest.keys)}
    for name in groups:
        if name not in column:
            raise InputError(
                f"{where}: keys: no {name!r}, which the pool has; a layer-wise gate needs every"
                f" tensor of the pool (it has {len(column)}; a task-wise gate fits any backbone)"
            )
    return regroup(gate, [column[name] for name in groups])


def check_tasks(ours: tuple[str, ...], theirs: tuple[str, ...], where: str) -> None:
    """Raise InputError if the task names differ, or their order."""
    if ours == theirs:
        return
    for name in (*ours, *theirs):
        if (name in ours) != (name in theirs):
            fault = "no expert of the pool" if name in ours else "the pool's, not the gate's"
            raise InputError(
                f"{where}: tasks: {name!r}: {fault}; the same tasks in the same order needed"
            )
    for number, (our, their) in enumerate(zip_longest(ours, theirs), start=1):
        if our != their:
            raise InputError(
                f"{where}: tasks: the pool's, in another order: number {number} is {our!r}, the"
                f" pool's is {their!r}; order the experts as {', '.join(ours)}"
            )


def build(tensors: Mapping[str, Tensor], manifest: Manifest, where: str) -> Gate:
    """Build a gate from its tensors, which are checked."""
    check_tensors(tensors, manifest, where)
    gate = Gate(manifest.width, len(manifest.tasks), manifest.groups, **options(manifest))
    gate.load_state_dict(dict(tensors))
    return gate


def check_tensors(tensors: Mapping[str, Tensor], manifest: Manifest, where: str) -> None:
    """Raise InputError if the tensors do not match the manifest; checked before allocation."""
    outputs = (len(manifest.tasks) + manifest.base_weight) * manifest.groups
    expected = shapes(manifest.width, outputs, manifest.depth)
    for name in (*expected, *sorted(tensors.keys() - expected.keys())):
        what = f"{where}: tensor {name!r}"
        if name not in tensors:
            raise InputError(f"{what}: missing")
        if name not in expected:
            raise InputError(
                f"{what}: unknown; allowed at depth {manifest.depth}: {list(expected)}"
            )
        tensor = tensors[name]
        if tuple(tensor.shape) != expected[name]:
            raise InputError(
                f"{what}: shape {list(tensor.shape)}; the manifest says {list(expected[name])}"
            )
        if tensor.dtype != torch.float32:
            raise InputError(f"{what}: dtype {tensor.dtype}; torch.float32 needed")
        if not tensor.isfinite().all():
            raise InputError(f"{what}: holds NaN or infinity")


def match(gate: Gate, manifest: Manifest, where: str) -> None:
    """Raise InputError if the manifest does not describe the gate."""
    built = {"width": gate.width, "tasks": gate.tasks, "groups": gate.groups, **gate.options}
    sizes = {"width": manifest.width, "tasks": len(manifest.tasks), "groups": manifest.groups}
    for name, value in {**sizes, **options(manifest)}.items():
        if value != built[name]:
            raise InputError(f"{where}: manifest: {name}: {value!r}; the gate has {built[name]!r}")


def options(manifest: Manifest) -> dict[str, Any]:
    """Keyword arguments of the manifest's gate."""
    return {name: getattr(manifest, name) for name in ("depth", "scale", "softmax", "base_weight")}


def is_text(value: Any) -> bool:
    """Whether a value is a non-empty text."""
    return isinstance(value, str) and value != ""


def is_names(value: Any) -> bool:
    """Whether a value is a list of distinct non-empty texts."""
    return isinstance(value, list) and all(map(is_text, value)) and len({*value}) == len(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer and not a boolean."""
    return type(value) is int


TEXT = (is_text, "a text needed")
FLAG = (lambda value: isinstance(value, bool), "true or false needed")
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: is_whole(value) and value == FORMAT, f"{FORMAT} can be read"),
    "method": TEXT,
    "extractor": TEXT,
    "extractor_hash": TEXT,
    "preprocessing": TEXT,
    "width": (lambda value: is_whole(value) and value > 0, "a positive whole number needed"),
    "tasks": (lambda value: is_names(value) and value != [], "a list of distinct names needed"),
    "grouping": (lambda value: value in ("task", "layer"), "'task' or 'layer' allowed"),
    "keys": (is_names, "a list of distinct names needed"),
    "depth": (lambda value: is_whole(value) and value in DEPTHS, "0, 1 or 2 allowed"),
    "scale": (
        lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max,
        "a finite number needed",
    ),
    "softmax": FLAG,
    "base_weight": FLAG,
    "steps": (lambda value: is_whole(value) and value >= 0, "0 or a positive whole number needed"),
}
"""Field -> check and message. `format` is first, because other formats have other fields."""


def parse(content: Any, where: str) -> Manifest:
    """Parse a manifest from plain data.

    Raises:
        InputError: not a JSON object, or a missing, unknown or wrong field.
    """
    where = f"{where}: manifest"
    if not isinstance(content, dict):
        raise InputError(f"{where}: {short(content)}; a JSON object needed")
    for name, (fits, needed) in RULES.items():
        if name not in content:
            raise InputError(f"{where}: {name}: missing; {needed}")
        if not fits(content[name]):
            raise InputError(f"{where}: {name}: {short(content[name])}; {needed}")
    for name in content:
        if name not in RULES:
            raise InputError(f"{where}: {short(name)}: unknown; allowed: {', '.join(RULES)}")
    if (content["grouping"] == "layer") != bool(content["keys"]):
        needed = "names needed for grouping 'layer', none for 'task'"
        raise InputError(f"{where}: keys: {len(content['keys'])} names; {needed}")
    if content["base_weight"] and not content["softmax"]:
        raise InputError(f"{where}: base_weight: true; only with softmax")
    lists = {name: tuple(content[name]) for name in ("tasks", "keys")}
    return Manifest(**{**content, **lists, "scale": float(content["scale"])})


def short(value: Any) -> str:
    """A value for a message: one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
