"""Tokenising many rows: what a sweep prepares against `datasets.map` with the same tokenizer.

Ours reads the parquet file, words each row by its template, checks it, tokenises, and writes the
rows' file that shards map (`Inputs.prepare`, in this process: without a Ray that is initialised).
`datasets.map` words and tokenises batches of 1,000 rows of the same file, and writes its own cache
file. Both use all threads that the library `tokenizers` takes.

Memory is the peak of this process during the run; it is flat where four times as many rows take
little more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from actors.data.task import TaskSource, open_task
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import open_tokenizer
from actors.files.embedded_pool import TEXT, locate
from benchmarks.environment import Row
from benchmarks.fusion.merging import peak_bytes, reset_peak
from benchmarks.text.clocks import in_turns, ratio
from sweeps.cli.quickstart import ensure_pool

TEMPLATE = "sentiment of : {text} . positive or negative ?"
CHECKED = 1000
"""Rows whose tokens are compared."""


def write_texts(folder: Path, rows: int) -> Path:
    """Texts of 5 to 39 words of the embedded pool's vocabulary, two classes."""
    vocabulary = sorted(word for word in tokenizer().load().get_vocab() if word.isalpha())
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, rows)
    words = np.array(vocabulary)[rng.integers(0, len(vocabulary), lengths.sum())]
    texts = [" ".join(part) for part in np.split(words, np.cumsum(lengths)[:-1])]
    labels = pa.array(rng.integers(0, 2, rows))
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), folder / "train.parquet")
    return folder


def tokenizer() -> Any:
    """The embedded pool's."""
    pool = locate(kind=TEXT)
    assert pool is not None
    return open_tokenizer(pool.base, "pool.base")


def ours(data: Path, cache: Path) -> Any:
    """Prepare all rows, in an empty cache folder; the file."""
    source = TaskSource("texts", str(data), template=TEMPLATE, classnames=("no", "yes"))
    task, inputs = open_task(source, "text"), TextInputs(tokenizer(), 512)
    [path] = inputs.prepare({"texts": task}, [("texts", "train")], cache).values()
    return inputs.open(path)


def library(data: Path, cache: Path) -> Any:
    """The same by `datasets.map`; the data set."""
    import datasets

    loaded = tokenizer().load()
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_parquet(
        str(data / "train.parquet"), cache_dir=str(cache), keep_in_memory=False
    )

    def tokenised(batch: dict[str, list[Any]]) -> dict[str, Any]:
        prompts = [TEMPLATE.format(text=text) for text in batch["text"]]
        found = loaded(prompts, truncation=True, max_length=512, return_attention_mask=False)
        return {"ids": found["input_ids"]}

    return rows.map(
        tokenised, batched=True, remove_columns=["text"], cache_file_name=str(cache / "rows.arrow")
    )


def watched(work: Callable[[Path, Path], object], data: Path, peaks: list[int]) -> None:
    """A run, with the peak memory of this process meanwhile."""
    reset_peak()
    with tempfile.TemporaryDirectory(dir=data.parent) as cache:
        work(data, Path(cache))
    peaks.append(peak_bytes())


def tokenising(scratch: Path, rows: int, repeats: int) -> list[Row]:
    """Rows a second, and memory."""
    ensure_pool("text", Console(stderr=True))
    data, few = write_texts(scratch / "many", rows), write_texts(scratch / "few", rows // 4)
    works = {"ours": ours, "datasets.map": library}
    low: dict[str, list[int]] = {name: [] for name in works}
    high: dict[str, list[int]] = {name: [] for name in works}
    check(few, scratch)
    for name, work in works.items():
        watched(work, few, low[name])
    spent = in_turns(
        {name: partial(watched, work, data, high[name]) for name, work in works.items()},
        repeats,
        warm=False,
    )
    found = [
        ratio(f"{rows:,} rows: datasets.map ÷ ours", spent["datasets.map"], spent["ours"], "≥ 1")
    ]
    for name, each in spent.items():
        rate, wall = rows / min(each.cpu), rows / min(each.wall)
        found.append(Row(f"{name}: rows a CPU second", rate, "", f"{wall:,.0f} a second of wall"))
    for name in works:
        more = high[name][0] - low[name][0]
        how = f"{more / 1e6:.0f} MB more at the peak for {rows:,} rows than for {rows // 4:,}"
        aim = "flat" if name == "ours" else ""
        found.append(Row(f"{name}: bytes a further row", more / (rows - rows // 4), aim, how))
    return found


def check(data: Path, scratch: Path) -> None:
    """Raise AssertionError where the two give other tokens."""
    mine, theirs = ours(data, scratch / "mine"), library(data, scratch)
    values, offsets = mine.ragged["ids"]
    for row in range(CHECKED):
        assert values[offsets[row] : offsets[row + 1]].tolist() == theirs[row]["ids"], row
