"""The embedded text pool in this process, and the textbook's way with it.

The textbook is the straightforward code: Python sums of state dicts, and `transformers`' own T5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch import Tensor
from torch.func import functional_call

from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import Rows, TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.t5.architecture import ALIASES, LM_HEAD, SHARED
from actors.families.t5.family import T5_FAMILY
from actors.files.cache_dir import cache_dir
from actors.pool.pool import load_flat, open_pool
from actors.pool.vectors_in_memory import unflatten
from benchmarks.pools import merged_state
from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool


class TextPool:
    """The embedded text pool, built where it is missing; the first rows of each task."""

    def __init__(self, scratch: Path, rows: int) -> None:
        """`rows`: of each task and role."""
        ensure_pool("text", Console(stderr=True))
        spec = yaml.safe_load(QUICKSTARTS["text"].read_text())
        self.pool = open_pool(spec["pool"]["base"], spec["pool"]["experts"])
        self.tasks = {
            name: open_task(TaskSource(name, given["dataset"], template=given["template"]), "text")
            for name, given in spec["tasks"].items()
        }
        found = prepare_data(self.pool.base, self.tasks, Splits(), ("fit", "report"), cache_dir())
        self.data = {name: shortened(task, rows) for name, task in found.items()}
        self.vectors = unflatten(load_flat(self.pool))
        cache = EmbeddingCache(scratch / "embeddings", {})
        self.experts = local_experts(self.pool, self.data, cache, vectors=self.vectors)
        self.runner = self.experts.runner
        self.shard = self.runner.pipeline.shards[0]
        self.inputs = T5_FAMILY.inputs(self.pool.base)

    def tokens(self, task: str, role: str, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """`ids` int64 [B, n] and `mask` bool [B, n] of rows, padded to their longest."""
        given = self.shard.to_device(self.runner.batch(task, role, rows))
        return given["ids"], given["mask"]


def shortened(task: TaskData, rows: int) -> TaskData:
    """The task with the first rows of each role."""

    def first(given: Rows) -> Rows:
        at = np.arange(rows) if given.indices is None else given.indices[:rows]
        return replace(given, indices=at)

    return replace(task, rows={role: first(given) for role, given in task.rows.items()})


class Library:
    """`transformers`' T5 with merged state dicts."""

    def __init__(self, pool: TextPool) -> None:
        from transformers import T5ForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.vectors = pool.vectors
        # The files have both tables, and so both stay apart.
        self.model: Any = T5ForConditionalGeneration.from_pretrained(pool.pool.base.folder).eval()
        assert {SHARED, LM_HEAD} <= pool.vectors.base.keys()

    def merged(self, coding: Tensor) -> dict[str, Tensor]:
        """The state dict of θ₀ + Σ_t c_t τ_t for a coding [T, 1 or G], other names included."""
        state = merged_state(self.vectors, coding)
        return state | dict.fromkeys(ALIASES, state[SHARED])

    def load(self, coding: Tensor) -> None:
        """Put a merged model in place."""
        self.model.load_state_dict(self.merged(coding))

    def first_token(self, state: Mapping[str, Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, V] of the first token, by a `functional_call`."""
        start = self.model.config.decoder_start_token_id
        given = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "decoder_input_ids": torch.full((len(ids), 1), start),
            "use_cache": False,
        }
        out = functional_call(self.model, dict(state), (), given, tie_weights=False)
        logits: Tensor = out.logits[:, 0]
        return logits

    def generate(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Greedy tokens, 20 with the start token at most, as the original's defaults are."""
        with torch.inference_mode():
            found: Tensor = self.model.generate(
                input_ids=ids, attention_mask=mask.long(), max_length=20, do_sample=False
            )
        return found
