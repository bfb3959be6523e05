"""Head files: a task's classification head [C, D] with its metadata, stored beside the weights.

Logits are n(z)·headᵀ: embeddings are normalised, the logit scale is part of the matrix, and there
is no intercept. The metadata states this form for other readers.

Axes: C classes, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actors.files.atomic import replacing
from actors.files.checksums import FIELD, again, sealed, unsealed
from actors.files.documents import parse_json
from actors.files.safetensors_header import check_regular, read_whole
from fusion.errors import InputError, one_line, reading
from fusion.logits.head import AnswerHead, CosineHead, Head, LinearHead, Objective

HeadKind: TypeAlias = Literal["zero_shot", "linear_probe"]

FILE = "head.safetensors"
"""File name beside the model's weights; `sweeps train` writes it."""

SAME = 1e-6
"""Rows count as equal if they differ by at most this share: rounding of another batch size."""

FORM = {"normalise": "true", "scale": "inside"}
"""Metadata of every head: embeddings are normalised, the logit scale is in the matrix."""


@dataclass(frozen=True)
class HeadFacts:
    """Metadata of a head file."""

    task: str
    kind: HeadKind
    classnames: tuple[str, ...]
    """Class names in the order of the rows."""
    base: str
    """Content hash of the model whose embeddings the head reads."""
    identity: str
    """Hash, equal for equal heads: of prompts and text tower, or of a probe's matrix."""
    C: float | None = None
    """Linear probe only: inverse penalty, chosen on the select split."""
    rows: str | None = None
    """Linear probe only: hash of the rows that it was fitted to."""

    def __str__(self) -> str:
        return f"{self.kind} {self.identity[:8]}"

    def metadata(self) -> dict[str, str]:
        """Metadata as safetensors stores it: name -> text."""
        told = {name: value for name, value in vars(self).items() if value is not None}
        texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in told.items()}
        return {**FORM, **texts}


def write_head(path: Path, matrix: Tensor, facts: HeadFacts) -> None:
    """Write a head file atomically; `matrix` [C, D] includes the logit scale."""
    data = sealed({"head": matrix.detach().float().cpu().contiguous()}, facts.metadata())
    with replacing(path) as part:
        part.write_bytes(data)


def head_facts(path: Path, what: str = "head") -> tuple[HeadFacts, tuple[int, ...]]:
    """Metadata of a head file and the shape of its matrix; the matrix is not read.

    Args:
        path: the file.
        what: field that named the file; begins each message.

    Raises:
        InputError: no such file, damaged, or not a head in this project's form.
    """
    if not path.exists():
        raise InputError(f"{what}: {path}: no such file; a {FILE} of `sweeps train` is needed")
    with reading(f"{what}: {path}"):
        check_regular(path, f"{what}: {path}")
    try:
        with safe_open(path, "pt") as handle:
            told: Mapping[str, str] = handle.metadata() or {}
            part = handle.get_slice("head")
            shape, dtype = part.get_shape(), part.get_dtype()
    except (SafetensorError, OSError) as error:
        raise refused(path, what, one_line(error)) from None
    if dtype != "F32" or len(shape) != 2:
        raise refused(path, what, f"head: {dtype} {list(shape)}; an F32 matrix [C, D] needed")
    for name, wanted in FORM.items():
        if told.get(name) != wanted:
            raise refused(path, what, f"{name}: {told.get(name)!r}; {wanted!r} needed")
    facts = parsed(told, path, what)
    if len(facts.classnames) != shape[0]:
        raise refused(path, what, f"{len(facts.classnames)} class names for {shape[0]} rows")
    return facts, tuple(shape)


def parsed(told: Mapping[str, str], path: Path, what: str) -> HeadFacts:
    """Parse the metadata of a head file.

    Raises:
        InputError: a field is missing or has the wrong type.
    """
    try:
        names = parse_json(told["classnames"], "classnames")
        if not isinstance(names, list) or told["kind"] not in get_args(HeadKind):
            raise ValueError(f"kind {told['kind']!r}, classnames {told['classnames'][:40]!r}")
        given: dict[str, Any] = {name: told[name] for name in ("task", "kind", "base", "identity")}
        strength = float(told["C"]) if "C" in told else None
    except (KeyError, ValueError) as error:
        raise refused(path, what, f"its metadata: {one_line(error)}") from None
    facts = HeadFacts(classnames=tuple(map(str, names)), C=strength, **given)
    return replace(facts, rows=told.get("rows"))


def refused(path: Path, what: str, reason: str) -> InputError:
    """The error for a file that is not a head file."""
    return InputError(f"{what}: {path}: not a head that `sweeps train` wrote: {reason}")


def check_head(
    path: Path, what: str, base: tuple[str, str], width: int, classnames: Sequence[str]
) -> HeadFacts:
    """Check that a head file fits a base and a task's classes; returns its metadata.

    Args:
        path: the file.
        what: field that named the file; begins each message.
        base: name and content hash of the pool's base.
        width: D, of the base's embeddings.
        classnames: class names of the task, in the order of the labels.

    Raises:
        InputError: see `head_facts`; another C or D, other classes or another order of them,
            another base, NaN or infinity. One line each.
    """
    facts, shape = head_facts(path, what)
    wanted = (len(classnames), width)
    if shape != wanted:
        raise InputError(
            f"{what}: {path}: {shape[0]} classes, width {shape[1]}; the task has {wanted[0]}"
            f" classes, the base's embeddings width {wanted[1]}"
        )
    for at, (theirs, ours) in enumerate(zip(facts.classnames, classnames, strict=True)):
        if theirs != ours:
            kind = "order of classes" if set(facts.classnames) == set(classnames) else "classes"
            raise InputError(
                f"{what}: {path}: other {kind}: class {at} is {theirs!r}, that of the task {ours!r}"
            )
    if base[1] != facts.base:
        raise InputError(
            f"{what}: {path}: made for another base: sha256 {facts.base[:12]}…;"
            f" {base[0]} is {base[1][:12]}…"
        )
    with reading(f"{what}: {path}"):
        head = unsealed(read_whole(path, f"{what}: {path}"), must=False)[0]["head"]
    check_rows(head, classnames, f"{what}: {path}")
    return facts


def check_rows(head: Tensor, classnames: Sequence[str], where: str) -> None:
    """Raise InputError for NaN or infinity, or two equal rows, which no image can tell apart.

    Args:
        head: [C, D].
        classnames: class names of the rows.
        where: begins the message.
    """
    if not bool(head.isfinite().all()):
        raise InputError(f"{where}: NaN or infinity; finite numbers needed")
    # Sorting along a fixed arbitrary direction puts equal rows next to each other.
    along = head @ torch.linspace(1, 2, head.shape[1]).sin()
    order = along.argsort(stable=True)
    rows = head[order]
    apart = (rows[1:] - rows[:-1]).norm(dim=1)
    same = (apart <= SAME * rows[1:].norm(dim=1)).nonzero()
    if len(same):
        at = int(same[0])
        one, other = sorted((int(order[at]), int(order[at + 1])))
        raise InputError(
            f"{where}: classes {classnames[one]!r} and {classnames[other]!r} have the same row of"
            " the head; each needs words of its own"
        )


def content_name(data: bytes) -> str:
    """Name of a head file's copy in the cache: a hash of its bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def read_head(path: Path) -> Tensor:
    """Matrix of a head file: float32 [C, D], logit scale included; of answers int32 [C, L].

    Raises:
        InputError: missing or damaged.
    """
    # Read, not mapped: a head is small, and its file may be replaced while it is used.
    try:
        return parsed_head(path.read_bytes(), path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a head: {one_line(error)}; delete it") from None


def open_head(path: Path) -> Head:
    """The head of a file: of answers where it names an `objective`, a linear one where it says
    `normalise: false`, else a cosine head.

    Raises:
        InputError: missing or damaged.
    """
    weight = read_head(path)
    tensors, facts = unsealed(path.read_bytes(), must=False)
    if (objective := facts.get("objective")) is not None:
        if objective not in get_args(Objective):
            allowed = " or ".join(get_args(Objective))
            raise InputError(f"{path}: objective: {objective!r}; {allowed} allowed")
        blanks = frozenset(tensors["blanks"].tolist()) if "blanks" in tensors else frozenset()
        return AnswerHead(weight, blanks, cast(Objective, objective))
    if facts.get("normalise") != "false":
        return CosineHead(weight)
    dense = tensors.get("dense.weight")
    before = None if dense is None else LinearHead(dense, tensors.get("dense.bias"))
    return LinearHead(weight, tensors.get("bias"), before)


def write_answer_head(
    path: Path,
    answers: Tensor,
    blanks: Sequence[int] = (),
    objective: Objective = "vocabulary",
) -> None:
    """Write a head of answers whole or not at all; families that score whole answers.

    Args:
        path: the file.
        answers: int [C, L], the tokens of each class's answer, −1 after its end. They stand in the
            place of a matrix, so that heads of other answers have other files.
        blanks: see `AnswerHead`.
        objective: see `AnswerHead`.
    """
    tensors = {"head": answers.to(torch.int32).contiguous()}
    if blanks:
        tensors["blanks"] = torch.tensor(blanks, dtype=torch.int32)
    data = sealed(tensors, {"objective": objective})
    with replacing(path) as part:
        part.write_bytes(data)


def write_linear_head(
    path: Path, weight: Tensor, bias: Tensor | None = None, before: LinearHead | None = None
) -> None:
    """Write a linear head [C, D], with the dense layer before it, whole or not at all; of families
    whose output is no embedding."""
    tensors = {"head": weight, "bias": bias}
    if before is not None:
        tensors |= {"dense.weight": before.weight, "dense.bias": before.bias}
    there = {name: each for name, each in tensors.items() if each is not None}
    plain = {name: each.detach().float().cpu().contiguous() for name, each in there.items()}
    with replacing(path) as part:
        part.write_bytes(sealed(plain, {"normalise": "false"}))


def sound(path: Path) -> bool:
    """Whether a head file exists and is intact; damage is logged."""
    try:
        parsed_head(path.read_bytes(), path)
    except OSError:
        return False
    except ValueError as error:
        again(path, error)
        return False
    return True


def parsed_head(data: bytes, path: Path) -> Tensor:
    """Finite matrix of a head file with a checksum, or whose name is the hash of its content.

    Heads written by earlier versions of `sweeps train` have their metadata but no checksum.

    Raises:
        ValueError: damaged.
    """
    tensors, facts = unsealed(data, must=False)
    if not (FIELD in facts or FORM.items() <= facts.items() or path.stem == content_name(data)):
        raise ValueError("no checksum")
    if "head" not in tensors:
        raise ValueError("no tensor 'head'")
    if not bool(tensors["head"].isfinite().all()):
        raise ValueError("NaN or infinity")
    return tensors["head"]
