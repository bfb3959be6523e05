"""A toy text family of three segments: ragged rows, tied tensors, RMS norm, a second stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from actors.artifacts.head_file import write_linear_head
from actors.checkpoints.checkpoint import Checkpoint, headers
from actors.data.protocol import RowShape
from actors.data.readers import read
from actors.data.row_file import open_rows, write_rows
from actors.families.protocol import Layout, segment
from actors.files.fingerprint import fingerprint
from fusion.errors import InputError

LETTERS, WIDTH, INNER, LONGEST = 12, 8, 16, 9
TYPE = "toy_text"
TABLE = "shared.weight"
"""Tied: embedding of the first segment, and projection of the last one."""
BLOCK = {name: f"block.{name}" for name in ("norm.weight", "mlp.wi.weight", "mlp.wo.weight")}


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LETTERS, WIDTH)

    def forward(self, given):
        mask = given["mask"][..., None]
        hidden = self.table(given["ids"]) * mask
        return {"hidden": hidden, "memory": hidden.sum(1) / mask.sum(1), "mask": given["mask"]}


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = (nn.Linear(*s, bias=False) for s in ((WIDTH, INNER), (INNER, WIDTH)))

    def forward(self, hidden):
        return self.wo(self.wi(hidden).relu().to(self.wo.weight.dtype))


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(WIDTH, eps=1e-6), FeedForward()

    def forward(self, given):
        return {**given, "hidden": given["hidden"] + self.mlp(self.norm(given["hidden"]))}


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, LETTERS, bias=False)

    def forward(self, given):
        mask = given["mask"][..., None]
        pooled = (given["hidden"] * mask).sum(1) / mask.sum(1)
        return {"output": self.out(self.norm(pooled + given["memory"]))}


@dataclass(frozen=True)
class Letters:
    """`Inputs`: bytes of a text column as ids, ragged on disk, padded to the batch's longest."""

    kind = "image"  # the column that tasks name `image` holds bytes of any kind
    fingerprint = fingerprint("toy-inputs")
    row = RowShape({}, {"ids": ("int32", LONGEST)})
    about = dimensions = f"{LONGEST} letters"

    def check_corruption(self, name, what):
        raise InputError(f"{what}: of images only")

    def prepare(self, tasks, needed, root, progress=None):
        found = {}
        for name, split in needed:
            data = tasks[name].split(split)
            found[name, split] = root / "pixels" / f"{fingerprint('toy', data.fingerprint)}.arrow"
            rows = [row for _, chunk in data.chunks(64) for row in read(chunk)]
            offsets = np.cumsum([0, *(len(text) for text, _, _ in rows)])
            values = np.frombuffer(b"".join(text for text, _, _ in rows), np.uint8) - ord("a")
            labels = np.array([label for _, _, label in rows])
            ragged = {"ids": (values.astype(np.int32), offsets)}
            write_rows(found[name, split], labels, {}, ragged)
        return found

    def open(self, path):
        return open_rows(path)

    def preview(self, rows, at):
        taken = rows.take(at)
        letters = taken["ids"].split(taken["ids.lengths"].tolist())
        return ["".join(chr(ord("a") + each) for each in row.tolist()) for row in letters]

    def collate(self, parts):
        rows = [t for p in parts for t in p["ids"].split(p["ids.lengths"].tolist())]
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True)
        return {"ids": pad_sequence(rows, True).long(), "mask": mask}


class Toy:
    """`ModelFamily` of the toy model."""

    name, model_types = "toy", {TYPE: ("ToyModel",)}
    offers = staticmethod(lambda base: frozenset({"embeddings", "mlp_blocks", "float16"}))

    def nothing(self, *given):
        """No training, no check that could fail, no difference."""

    training = difference = check_base = check_model = check_expert = check_unfused = nothing
    published_layout = encoder_states = check_tasks = usage = nothing

    def inspect(self, source, folder, config, name):
        found = headers(folder, config, name, "ToyModel")
        if lacking := [key for key in shapes() if key not in found]:
            raise InputError(f"{name}: {folder}: tensor {lacking[0]!r}: missing")
        ordered = {key: found[key] for key in shapes()}
        return Checkpoint(name, source, folder, config, ordered, {}, {}, fields=config)

    canonical = staticmethod(str)

    def fused(self, base, experts):
        return tuple(base.tensors)

    def empty(self, *given):
        return {}

    tempered = check_heads = own_heads = empty

    exported = empty

    def segments(self, base):
        last = {"norm.weight": "last.norm.weight", "out.weight": TABLE}
        return (
            segment(base, Embed, (), {"table.weight": TABLE}),
            segment(base, Middle, (), BLOCK, "mlp", WIDTH),
            segment(base, Last, (), last),
        )

    def layout(self, base):
        inputs = {name: name for name in (*BLOCK.values(), TABLE) if "norm" not in name}
        return Layout(LONGEST * INNER, LONGEST * INNER, LONGEST * INNER, inputs)

    def width(self, base):
        return LETTERS

    def inputs(self, base):
        return Letters()

    def companions(self, base):
        return {"preprocessing": str(Letters.fingerprint)}

    def head_fingerprints(self, base, tasks):
        return {name: fingerprint("toy-head", list(t.classnames)) for name, t in tasks.items()}

    def heads(self, base, tasks, root):
        """Rows of the vocabulary: class c is read off letter c."""
        found = {}
        for name, task in tasks.items():
            found[name] = (
                root / "heads" / f"{self.head_fingerprints(base, tasks)[name]}.safetensors"
            )
            bias = torch.linspace(0, 1, len(task.classnames))
            write_linear_head(found[name], torch.eye(LETTERS)[: len(bias)], bias)
        return found


TOY = Toy()


def shapes() -> Mapping[str, tuple[int, ...]]:
    block = dict(zip(BLOCK.values(), ((WIDTH,), (INNER, WIDTH), (WIDTH, INNER)), strict=True))
    return {TABLE: (LETTERS, WIDTH), **block, "last.norm.weight": (WIDTH,)}


def write_model(folder: Path, seed: int, base: Mapping | None = None) -> dict:
    """A model of random weights, or one near `base`; its tensors."""
    draw = torch.Generator().manual_seed(seed)
    made = {key: torch.randn(shape, generator=draw) for key, shape in shapes().items()}
    tensors = made if base is None else {k: base[k] + 0.2 * made[k] for k in made}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": TYPE}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def write_task(folder: Path, classes: int, seed: int) -> None:
    """A data set of words of one to nine letters; the label is a class of its own."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("test", 12)):
        lengths = draw.integers(1, 10, count)
        words = [bytes(draw.integers(97, 97 + LETTERS, size, np.uint8)) for size in lengths]
        table = {"text": pa.array(words, pa.binary()), "label": np.arange(count) % classes}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")
    meta = {"classnames": [f"class {c}" for c in range(classes)]}
    (folder / "meta.json").write_text(json.dumps(meta))
