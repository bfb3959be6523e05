"""Evaluation by `rank` against `generate`, and batches of near-equal length against padded ones.

* rank: what a sweep runs (`LocalExperts.evaluate`: merging, scores of all answers in one pass, and
  the texts that greedy decoding writes) against `transformers`' `generate` on the same merged
  model, 32 rows a batch. Prompts are tokenised before the clock starts, on both sides. The original
  pads every prompt to the longest that Flan-T5's tokenizer allows: 512 tokens. The tokenizer of the
  embedded pool allows 64.
* buckets: passes of the same model over the same rows, in `buckets` of near-equal length, against
  consecutive rows that are padded to the longest of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from actors.artifacts.head_file import read_head
from actors.artifacts.recipe import Recipe
from actors.data.protocol import Activations
from actors.data.task_rows import BATCH, batches, buckets
from benchmarks.environment import Row
from benchmarks.text.clocks import in_turns, ratio
from benchmarks.text.pool import Library, TextPool

REPORT = "report"
RECIPE = Recipe("task_arithmetic", {"scale": 0.3})
FLAN = 512
"""Tokens that the original pads every prompt to: the longest of Flan-T5's tokenizer."""

GENERATED = 32
"""Rows a batch of `generate`: FusionBench's."""


@dataclass
class Counts:
    """Work that no machine changes."""

    real: int = 0
    tokens: int = 0
    encoder: int = 0
    decoder: int = 0
    flops: int = 0

    def __str__(self) -> str:
        padded = 100 * (1 - self.real / max(self.tokens, 1))
        return (
            f"{self.tokens:,} source tokens ({padded:.0f} % padding), {self.encoder} passes of the"
            f" encoder, {self.decoder} of the decoder, {self.flops / 1e9:.3g} GFLOP"
        )


def counted(pool: TextPool, library: Library, work: Callable[[], object]) -> Counts:
    """Source tokens, passes, and operations of matrix products with weights of one run."""
    counts = Counts()

    def ours(_: Any, given: tuple[Activations]) -> None:
        counts.tokens += given[0]["ids"].numel()
        counts.real += int(given[0]["mask"].sum())
        counts.encoder += 1
        counts.decoder += 1

    def encoder(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        counts.tokens += given["input_ids"].numel()
        counts.real += int(given["attention_mask"].sum())
        counts.encoder += 1

    def decoder(*_: Any) -> None:
        counts.decoder += 1

    model = library.model
    hooks = [
        pool.shard.resident.modules[0].register_forward_pre_hook(ours),
        model.encoder.register_forward_pre_hook(encoder, with_kwargs=True),
        model.decoder.register_forward_pre_hook(decoder),
    ]
    try:
        with FlopCounterMode(display=False) as flops:
            work()
    finally:
        for hook in hooks:
            hook.remove()
    counts.flops = flops.get_total_flops()
    return counts


class Generation:
    """The textbook's evaluation: merge, load, `generate`, compare tokens."""

    def __init__(self, pool: TextPool, library: Library) -> None:
        self.library, self.inputs = library, pool.inputs
        self.coding = torch.full((len(pool.vectors.tasks), 1), RECIPE.params["scale"])
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}
        self.wanted: dict[str, Tensor] = {}
        for task in pool.data:
            every = slice(0, pool.runner.size(task, REPORT))
            self.rows[task] = pool.tokens(task, REPORT, every)
            labels = pool.runner.labels(task, REPORT)
            self.wanted[task] = read_head(pool.data[task].head).long()[labels]
        self.longest = max(ids.shape[1] for ids, _ in self.rows.values())

    def run(self, length: int | None) -> dict[str, float]:
        """Task -> exact match; prompts padded to `length`, None: to the longest of a batch."""
        self.library.load(self.coding)
        found = {}
        for task, (ids, mask) in self.rows.items():
            right = 0
            for part in batches(len(ids), GENERATED):
                given = [fitted(each[part], mask[part], length) for each in (ids, mask)]
                written = self.library.generate(*given)[:, 1:]
                right += int(same(written, self.wanted[task][part]).sum())
            found[task] = right / len(ids)
        return found


def fitted(values: Tensor, mask: Tensor, length: int | None) -> Tensor:
    """Rows [B, n] padded to a length, or cut to the longest of their batch."""
    if length is None:
        return values[:, : int(mask.sum(1).max())]
    return pad(values, (0, length - values.shape[1]))


def same(written: Tensor, wanted: Tensor) -> Tensor:
    """Whether rows are their answers: both end with the end token, padding follows."""
    size = max(written.shape[1], wanted.shape[1])
    ours = pad(written, (0, size - written.shape[1]))
    theirs = pad(wanted.clamp(min=0), (0, size - wanted.shape[1]))
    return (ours == theirs).all(1)


def rank(pool: TextPool, library: Library, repeats: int) -> list[Row]:
    """Evaluation as in a sweep against `generate`."""
    theirs, limit = Generation(pool, library), pool.inputs.limit
    lengths = {
        f"generate, padded to {FLAN}, as the original": FLAN,
        f"generate, padded to the tokenizer's longest ({limit})": limit,
        f"generate, padded to the data's longest ({theirs.longest})": theirs.longest,
        "generate, padded to a batch's longest": None,
    }
    works: dict[str, Callable[[], object]] = {
        "rank": lambda: pool.experts.evaluate(RECIPE, REPORT),
        **{name: partial(theirs.run, length) for name, length in lengths.items()},
    }
    ours = pool.experts.evaluate(RECIPE, REPORT).metrics()
    exact = theirs.run(None)
    off = max(abs(ours[f"exact/{task}"] - value) for task, value in exact.items())
    spent = in_turns(works, repeats, warm=False)
    aims = ["≥ 5", "", "", ""]
    rows = [
        ratio(f"{name} ÷ evaluation by rank", spent[name], spent["rank"], aim)
        for name, aim in zip(lengths, aims, strict=True)
    ]
    found = {name: counted(pool, library, work) for name, work in works.items()}
    for name in lengths:
        share = found[name].flops / found["rank"].flops
        rows.append(Row(f"{name}: operations ÷ rank's", share, "", f"{found[name]}"))
    rows += [
        Row("rank: passes of the encoder", found["rank"].encoder, "", f"{found['rank']}"),
        Row("exact match, ours and generate's: largest difference", off, "0", "of the six tasks"),
    ]
    return rows


def drawn_lengths(rows: int) -> NDArray[np.int64]:
    """Tokens of rows like GLUE's: log-normal, median 40, 68 % from 25 to 63."""
    found = np.random.default_rng(0).lognormal(np.log(40), 0.45, rows)
    return np.clip(found, 8, 512).astype(np.int64)


def lengths_of(folder: Path) -> NDArray[np.int64]:
    """Words and punctuation marks of each text of a data set's parquet files, in order, with those
    of a template of ten words."""
    import pyarrow.parquet as pq
    from tokenizers.pre_tokenizers import Whitespace

    texts = [
        text
        for file in sorted(folder.rglob("*.parquet"))
        for text in pq.read_table(file, columns=["text"]).column("text").to_pylist()
    ]
    split = Whitespace().pre_tokenize_str
    return np.array([10 + len(split(text)) for text in texts])


def bucketed(pool: TextPool, name: str, lengths: NDArray[np.int64], repeats: int) -> list[Row]:
    """Passes in buckets against passes over rows padded to the data set's longest."""
    draw, size = torch.Generator().manual_seed(0), len(pool.inputs.tokenizer.load())
    answers = read_head(next(iter(pool.data.values())).head).long()
    tokens = [torch.randint(3, size, (int(n),), generator=draw) for n in lengths]
    longest = int(lengths.max())
    weights = pool.runner.pipeline.weights(coding=torch.full((1, len(pool.vectors.tasks), 1), 0.3))

    def collated(rows: Sequence[int] | NDArray[np.int64]) -> Activations:
        part = {
            "ids": torch.cat([tokens[row] for row in rows]),
            "ids.lengths": torch.from_numpy(lengths[rows]),
            "answers": answers.expand(len(rows), *answers.shape),
        }
        return pool.inputs.collate([part])

    def near() -> Tensor:
        parts = buckets(lengths, BATCH)
        found = torch.cat([pool.shard.run(collated(at), weights)["output"] for at in parts])
        return found[torch.from_numpy(np.argsort(np.concatenate(parts)))]

    def padded() -> Tensor:
        found = []
        for part in batches(len(lengths), BATCH):
            given = collated(np.arange(part.start, part.stop))
            more = (0, longest - given["ids"].shape[1])
            given |= {"ids": pad(given["ids"], more), "mask": pad(given["mask"], more)}
            found.append(pool.shard.run(given, weights)["output"])
        return torch.cat(found)

    off = float((near() - padded())[:, 2:].abs().max())
    spent = in_turns({"padded": padded, "near": near}, repeats, warm=False)
    real, made = int(lengths.sum()), sum(len(p) * int(lengths[p].max()) for p in buckets(lengths))
    whole = longest * len(lengths)
    about = f"{len(lengths):,} rows of 8 to {longest} tokens, median {int(np.median(lengths))}"
    return [
        ratio(
            f"{name}: padded to the data's longest ÷ buckets", spent["padded"], spent["near"], "≥ 2"
        ),
        Row(
            f"{name}: source tokens, padded ÷ buckets",
            whole / made,
            "",
            f"{whole:,} ({100 * (1 - real / whole):.0f} % padding) ÷ {made:,}"
            f" ({100 * (1 - real / made):.1f} %); {about}",
        ),
        Row(f"{name}: scores' largest difference", off, "< 1e-4", "nats"),
    ]
