"""Small T5s of both kinds with drawn weights, and drawn rows of two tasks, without a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, load_config, read
from actors.data.row_file import LENGTHS
from actors.families.t5.inputs import T5Inputs
from actors.families.t5.inspect import inspected
from actors.families.t5.segments import t5_segments
from actors.shards.messages import Batch
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Shard
from fusion.logits.head import AnswerHead
from fusion.task_vectors.task_vectors import TaskVectors
from tests.tiny_text import write_texts, write_tokenizer

V, D, KV, FF, HEADS = 40, 16, 8, 24, 2
KINDS = ("v1.0", "v1.1")
ANSWERS = {
    "one": torch.tensor([[5, 1, -1, -1], [6, 1, -1, -1]]),
    "many": torch.tensor([[5, 7, 8, 1], [5, 7, 1, -1], [9, 1, -1, -1]]),
}
"""Task -> answers; of the second two begin alike, and one is the beginning of another."""
LAST = 6
"""Segments of a model with two blocks on the encoder's side and one on the decoder's."""


def write_model(
    folder: Path, kind: str = "v1.1", seed: int = 0, dtype: torch.dtype = torch.float32, **fields
) -> Path:
    """A folder as `transformers` writes it."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    new = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    sizes = {
        "vocab_size": V, "d_model": D, "d_kv": KV, "d_ff": FF, "num_heads": HEADS,
        "num_layers": 2, "num_decoder_layers": 1, "decoder_start_token_id": 0,
    }  # fmt: skip
    config = T5Config(**{**sizes, **(new if kind == "v1.1" else {}), **fields})
    model = T5ForConditionalGeneration(config)
    if kind == "v1.1":
        model.lm_head = torch.nn.Linear(D, config.vocab_size, bias=False)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_expert(folder: Path, base: Path, seed: int) -> Path:
    """A model near `base`."""
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    moved = {k: t + 0.1 * torch.randn(t.shape, generator=draw) for k, t in tensors.items()}
    folder.mkdir(parents=True)
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def library(folder: Path, dtype: torch.dtype = torch.float32):
    """The model of `transformers`."""
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    ).eval()


def opened(folder: Path, name: str = "pool.base") -> Checkpoint:
    return inspected(str(folder), folder, load_config(folder, name), name)


class DrawnRows:
    def __init__(self, task: str) -> None:
        draw = torch.Generator().manual_seed(len(task))
        self.lengths = torch.randint(2, 9, (8,), generator=draw)
        self.ids = [torch.randint(2, V, (n,), generator=draw) for n in self.lengths.tolist()]
        self.labels = torch.arange(8) % len(ANSWERS[task])
        self.answers = ANSWERS[task]

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        ids = torch.cat([self.ids[row] for row in rows.tolist()]).int()
        return {
            "ids": ids,
            "ids" + LENGTHS: self.lengths[rows],
            "answers": self.answers.expand(len(rows), -1, -1),
        }


class DrawnInputs(T5Inputs):
    def open(self, path: Path) -> DrawnRows:
        return DrawnRows(path.name)


INPUTS = DrawnInputs(None, 32, answers=True)


def batch(rows: int = 4, tasks: tuple[str, ...] = tuple(ANSWERS), **more) -> Batch:
    import numpy as np

    return Batch(tuple((task, Path(task), np.arange(rows)) for task in tasks), **more)


def collated(given: Batch) -> dict[str, Tensor]:
    parts = [DrawnRows(t).take(torch.from_numpy(rows)) for t, _, rows in given.parts]
    return INPUTS.collate(parts)


def vectors_of(base: Checkpoint, experts: list[Checkpoint], dtype: torch.dtype) -> TaskVectors:
    origin = {name: t.to(dtype) for name, t in read(base)}
    theirs = [{name: t.to(dtype) for name, t in read(each)} for each in experts]
    deltas = {k: torch.stack([each[k] - t for each in theirs]) for k, t in origin.items()}
    tasks = tuple(f"expert{i}" for i in range(len(experts)))
    return TaskVectors(tasks, origin, deltas)


def pipeline_of(
    base: Checkpoint, vectors: TaskVectors, cut: list[tuple[int, int]], dtype: torch.dtype,
    objective: str = "vocabulary",
) -> Pipeline:  # fmt: skip
    heads = {task: AnswerHead(found, objective=objective) for task, found in ANSWERS.items()}
    chain, shards = t5_segments(base), []
    plan = Blueprint(chain, INPUTS, vectors.base)
    for block in cut:
        held = {name for link in chain[slice(*block)] for name in link.names.values()}
        part = vectors.restrict([name for name in vectors.base if name in held])
        shards.append(Shard(plan, part, heads, dtype=dtype, block=block, contexts=3))
    return Pipeline(shards, [shard.names() for shard in shards], tuple(vectors.base), LocalLink())


WORDS = (
    "red", "green", "blue", "hot", "cold", "warm", "sun", "sea", "sky", "ice", "fire", "leaf", "up",
    "down", "is", "the",
)  # fmt: skip
CLASSES = {"colour": ("red", "green", "blue sky"), "heat": ("hot", "ice_cold")}
"""Task -> class names, which are its answers; some are two tokens."""


def write_pool(root: Path, kind: str = "v1.1") -> Path:
    """A base, an expert and a data set of each task; texts of two to six words."""
    base = write_model(root / "base", kind)
    write_tokenizer(base, WORDS)
    for seed, (task, names) in enumerate(CLASSES.items(), 1):
        write_expert(root / task, base, seed)
        draw = torch.Generator().manual_seed(seed)
        splits = {}
        for split, rows in (("train", 24), ("test", 12)):
            sizes = torch.randint(2, 7, (rows,), generator=draw).tolist()
            texts = [
                " ".join(WORDS[at] for at in torch.randint(len(WORDS), (n,), generator=draw))
                for n in sizes
            ]
            splits[split] = {"text": texts, "label": [at % len(names) for at in range(rows)]}
        write_texts(root / "data" / task, splits, names)
    return root


def sweep_of(root: Path, name: str, methods: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep file's content: methods over the pool that `write_pool` wrote."""
    return {
        "name": name,
        "pool": {"base": str(root / "base"), "experts": {t: str(root / t) for t in CLASSES}},
        "tasks": {t: {"dataset": str(root / "data" / t)} for t in CLASSES},
        "methods": methods,
    }
