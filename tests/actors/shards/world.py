"""A tiny pool of CLIP models of random weights, with images, heads and made-up features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from actors.artifacts.head_file import read_head
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.clip.architecture import PROJECTION
from actors.families.clip.segments import clip_segments
from actors.families.protocol import segment_names
from actors.pool.pool import Pool, open_pool, task_vectors
from actors.shards.shard import Batch, Shard
from fusion.task_vectors.task_vectors import TaskVectors
from tests.actors.conftest import Tiny, write_parquet
from tests.actors.laws.parts import with_features

CLASSES = {"t0": 2, "t1": 3, "t2": 4}
EXACT: Any = {"rtol": 1e-9, "atol": 1e-11}
"""Of float64."""


@dataclass(frozen=True)
class World:
    """A tiny pool with three tasks' images, heads and made-up features."""

    pool: Pool
    data: Mapping[str, TaskData]
    vectors: TaskVectors
    vision: Mapping[str, Any]
    """The tower's configuration."""
    cache: Path

    @property
    def doubles(self) -> TaskVectors:
        return replace(
            self.vectors,
            base={name: tensor.double() for name, tensor in self.vectors.base.items()},
            deltas={name: delta.double() for name, delta in self.vectors.deltas.items()},
        )

    @property
    def heads(self) -> dict[str, Tensor]:
        return {name: read_head(task.head) for name, task in self.data.items()}

    def experts(
        self, *blocks: tuple[int, int] | None, dtype: torch.dtype = torch.float32, name: str = "one"
    ) -> LocalExperts:
        identity = {key: key for key in (*self.data, "pretrained")}
        return local_experts(
            self.pool,
            self.data,
            EmbeddingCache(self.cache / name, identity),
            dtype=dtype,
            blocks=blocks or (None,),
            vectors=self.doubles if dtype == torch.float64 else self.vectors,
        )

    def shard(
        self,
        block: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float64,
        contexts: int = 4,
    ) -> Shard:
        chain = clip_segments(self.pool.base)
        names = segment_names(chain, *(block or (0, len(chain))))
        vectors = self.doubles if dtype == torch.float64 else self.vectors
        part = vectors.restrict([name for name in vectors.base if name in names])
        return Shard(self.pool.base, part, self.heads, "cpu", dtype, block, contexts)

    def batch(self, **rows: list[int]) -> Batch:
        """Rows of the report splits."""
        return Batch(
            tuple(
                (task, self.data[task].rows["report"].file, np.array(at, dtype=np.int64))
                for task, at in rows.items()
            )
        )

    def pixels(self, batch: Batch) -> Tensor:
        parts = [open_pixels(path).images[torch.from_numpy(at)] for _, path, at in batch.parts]
        return torch.cat(parts)

    def coding(self, kind: str, models: int, seed: int = 0) -> Tensor:
        """Around 0.3, one of "task mean", "layer sample", …: [1 or `models`, T, 1 or G]."""
        grouping, each = kind.split()
        generator = torch.Generator().manual_seed(seed)
        groups = len(self.vectors.groups) if grouping == "layer" else 1
        shape = (models if each == "sample" else 1, 3, groups)
        return 0.3 + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def make_world(tiny: Tiny, root: Path, projected: bool = False) -> World:
    base = tiny.base(root / "base")
    experts = {task: tiny.expert(root / task, seed=1 + at) for at, task in enumerate(CLASSES)}
    if projected:  # one expert is a whole model, whose projection moved too
        moved = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
        moved[PROJECTION] = tiny.state[PROJECTION] * 1.3
        experts["t0"] = tiny.base(root / "whole", **moved)
    pool = open_pool(str(base), {task: str(folder) for task, folder in experts.items()})
    for at, (task, classes) in enumerate(CLASSES.items()):
        names = [f"c{label}" for label in range(classes)]
        for split, rows in (("train", 20), ("test", 7 + at)):
            labels = [row % classes for row in range(rows)]
            file = root / "data" / task / f"{split}.parquet"
            write_parquet(file, labels, names=names, first=1000 * at + 100 * (split == "test"))
    tasks = {name: open_task(TaskSource(name, str(root / "data" / name))) for name in CLASSES}
    found = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], root / "cache")
    data = with_features(found, root)
    return World(pool, data, task_vectors(pool), tiny.config["vision_config"], root)


class Oracle:
    """transformers' tower in float64, eager attention, each sample with its own parameters."""

    def __init__(self, world: World) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(**world.vision)
        config._attn_implementation = "sdpa"  # "eager" takes its softmax in float32
        self.model = CLIPVisionModel(config).double().eval()
        self.vectors = world.doubles
        resident = world.shard().resident.arena  # the base; the projection where it is not fused
        self.base = {name: resident[name].clone() for name in resident}
        self.heads = {name: head.double() for name, head in world.heads.items()}

    def merged(self, coding: Tensor) -> dict[str, Tensor]:
        """name -> [M, *shape], in autograd's sight."""
        columns = coding.expand(-1, -1, len(self.vectors.groups))
        merged = {name: tensor[None] for name, tensor in self.base.items()}
        for at, name in enumerate(self.vectors.groups):
            step = torch.einsum("mt,t...->m...", columns[:, :, at], self.vectors.deltas[name])
            merged[name] = self.base[name] + step
        return merged

    def embed(self, merged: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
        images = (pixels.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        own = {name: t.expand(len(images), *t.shape[1:]) for name, t in merged.items()}

        def one(weights: dict[str, Tensor], image: Tensor) -> Tensor:
            tower = {name: tensor for name, tensor in weights.items() if name != PROJECTION}
            pooled: Tensor = functional_call(self.model, tower, (image[None],)).pooler_output
            return pooled[0] @ weights[PROJECTION].T

        with sdpa_kernel(SDPBackend.MATH):  # which vmap knows
            found: Tensor = vmap(one)(own, images)
        return found

    def losses(self, embedded: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean entropy of each task's rows."""
        found, at = {}, 0
        for task, _, rows in batch.parts:
            z = embedded[at : at + len(rows)]
            z = z / z.norm(dim=-1, keepdim=True) @ self.heads[task].T
            found[task] = Categorical(logits=z).entropy().mean()
            at += len(rows)
        return found
