"""Texts as inputs of a model: token ids on disk, padded to a batch's longest row at each pass."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from actors.data.protocol import Activations, Corruption, PreparedRows, Progress, RowShape
from actors.data.readers import Chunk, local_files
from actors.data.task import Kind, Task
from actors.data.task_rows import Rows
from actors.data.text.corruptions import CORRUPTIONS, VERSION
from actors.data.text.tokenise import Recipe, Words, tokenise, tokenised_targets
from actors.data.text.tokenizer import TextTokenizer
from actors.data.text.wording import Wording
from actors.data.workers import mapped
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError

if TYPE_CHECKING:  # torch takes seconds to load
    from torch import Tensor

    from actors.data.row_file import RowFile

LOG = logging.getLogger(__name__)

CHUNK_ROWS = 4096
"""Rows that a worker tokenises at a time: a second's work."""

FEW = 20_000
"""Fewer rows than this are tokenised in this process: sooner done than workers are started."""

PREVIEW = 240
"""Most characters of a text for people."""

NONE = -1
"""After the tokens of a target that is shorter than the longest."""


@dataclass(frozen=True)
class TextInputs:
    """`Inputs` of models that read token ids."""

    tokenizer: TextTokenizer
    limit: int
    """Tokens of a row at most; the end of a longer one is cut off."""
    pad: int = 0
    """Id where there is no token; `mask` is False there."""
    words: Words = "prompt"
    """What of a row is tokenised; `fields` adds `types`, 1 where the second column's tokens are."""
    answers: bool = False
    """Whether the task's tokenised targets are given with each row."""
    kind: ClassVar[Kind] = "text"

    @property
    def fingerprint(self) -> Fingerprint:
        """Of tokenizer, limit, padding, and what is tokenised."""
        return fingerprint(
            "text-inputs-1",
            self.tokenizer.fingerprint,
            self.limit,
            self.pad,
            self.words,
            self.answers,
        )

    @property
    def ragged(self) -> dict[str, str]:
        """Columns of a row's tokens, and their dtypes."""
        return {"ids": "int32", **({"types": "uint8"} if self.words == "fields" else {})}

    @property
    def row(self) -> RowShape:
        """int32 `ids`, and for `fields` uint8 `types`."""
        return RowShape({}, {name: (kind, self.limit) for name, kind in self.ragged.items()})

    @property
    def about(self) -> str:
        """The longest row in tokens."""
        return f"up to {self.limit} tokens"

    @property
    def dimensions(self) -> str:
        """The same."""
        return self.about

    def check_corruption(self, name: str, what: str) -> None:
        """Raise InputError for a corruption that is not of texts."""
        if name not in CORRUPTIONS:
            raise InputError(
                f"{what}: of images; the pool's models read texts: one of"
                f" {', '.join(CORRUPTIONS)} allowed"
            )

    def path(
        self, task: Task, split: str, root: Path, corruption: Corruption | None = None
    ) -> Path:
        """Where a prepared split lies; the name is a hash of all that its content depends on."""
        words = wording_of(task)
        under = [] if corruption is None else [VERSION, list(astuple(corruption))]
        key = fingerprint(
            *("text-rows-1", task.split(split).fingerprint, self.fingerprint, words.template),
            *(list(words.columns), list(words.targets), *under),
        )
        return root / "tokens" / f"{key}.arrow"

    def check(self, tasks: Iterable[Task]) -> None:
        """Raise InputError where a task has no words, or targets that the model cannot tell apart.

        Targets that the tokenizer turns into the same tokens share all of them; so do those that
        are nothing but unknown tokens.
        """
        for task in tasks:
            targets, where = wording_of(task).targets, f"tasks.{task.name}: targets"
            rows = self.target_ids(targets)
            special = set(self.tokenizer.load().all_special_ids)
            seen: dict[tuple[int, ...], str] = {}
            for target, ids in zip(targets, rows, strict=True):
                if not set(ids) - special:
                    raise InputError(f"{where}: {target!r}: no token of the tokenizer's is in it")
                self.check_ended(ids, f"{where}: {target!r}")
                if tuple(ids) in seen:
                    raise InputError(
                        f"{where}: {seen[tuple(ids)]!r} and {target!r} share all their tokens;"
                        " each class needs its own"
                    )
                seen[tuple(ids)] = target

    def check_ended(self, ids: Sequence[int], where: str) -> None:
        """Raise InputError where a target has an end or padding token that is not at its end."""
        tokenizer = self.tokenizer.load()
        inner = {tokenizer.eos_token_id, self.pad} & set(ids[:-1])
        if inner:
            token = tokenizer.convert_ids_to_tokens(min(inner))
            raise InputError(f"{where}: has the token {token!r}, which no answer may contain")

    def target_ids(self, targets: Sequence[str]) -> list[list[int]]:
        """Ids of each target, special tokens (`</s>`) added."""
        contents = tuple(sorted(self.tokenizer.contents().items()))
        return tokenised_targets(targets, contents, self.tokenizer.fingerprint)

    def prepare(
        self,
        tasks: Mapping[str, Task],
        needed: Collection[tuple[str, str]],
        root: Path,
        progress: Progress | None = None,
    ) -> dict[tuple[str, str], Path]:
        """Tokenise what the cache lacks, through Ray Data where a Ray is initialised.

        Rows that are longer than the limit are counted, and said each time.

        Raises:
            InputError: an empty text or a label out of range, by task, split and row; no space
                left.
        """
        return self.prepared(tasks, needed, root, progress)

    def corrupted(
        self, rows: Rows, task: Task, split: str, corruption: Corruption, root: Path
    ) -> Rows:
        """These rows of a file that holds the whole split, corrupted before the template.

        Raises:
            InputError: see `prepare`.
        """
        at = (task.name, split)
        files = self.prepared({task.name: task}, [at], root, corruption=corruption)
        return replace(rows, file=files[at], features={})

    def prepared(
        self,
        tasks: Mapping[str, Task],
        needed: Collection[tuple[str, str]],
        root: Path,
        progress: Progress | None = None,
        corruption: Corruption | None = None,
    ) -> dict[tuple[str, str], Path]:
        """As `prepare`, with all texts under a corruption, or clean ones."""
        paths = {at: self.path(tasks[at[0]], at[1], root, corruption) for at in needed}
        missing: dict[Path, tuple[str, str]] = {}
        for at, path in paths.items():
            if cached(path) is None:
                missing.setdefault(path, at)
        if missing:
            self.write(tasks, missing, progress or (lambda done, total: None), corruption)
        for (name, split), path in paths.items():
            if said := cut_rows(path, self.limit):
                LOG.warning("task %r: split %r: %s", name, split, said)
        return paths

    def write(
        self,
        tasks: Mapping[str, Task],
        missing: Mapping[Path, tuple[str, str]],
        progress: Progress,
        corruption: Corruption | None = None,
    ) -> None:
        """Tokenise and write splits, all of them as one stream of chunks."""
        from actors.data.row_file import RowWriter  # late: loads torch

        chunks, splits = [], []
        for index, (path, (name, split)) in enumerate(missing.items()):
            task, data = tasks[name], tasks[name].split(split)
            splits.append(PendingSplit(path, task, RowWriter(path, self.ragged)))
            where = f"task {name!r}: split {split!r}"
            for start, rows in data.chunks(CHUNK_ROWS):
                chunks.append(Chunk(index, start, rows, len(task.classnames), where))
        recipe = Recipe(
            tuple(sorted(self.tokenizer.contents().items())),
            self.tokenizer.fingerprint,
            self.limit,
            self.words,
            tuple(wording_of(pending.task) for pending in splits),
            corruption,
        )
        done, total = 0, sum(chunk.rows.count for chunk in chunks)
        progress(done, total)
        files = (file for chunk in chunks for file in local_files(chunk.rows))
        try:
            for table in mapped(
                tokenise,
                chunks,
                {"recipe": recipe},
                files,
                "texts: a worker that tokenises them",
                here=total < FEW,
                ordered=True,
            ):
                faults = table.column("error").drop_null()
                if len(faults):
                    raise InputError(faults[0].as_py())
                add(table, splits, self.ragged)
                done += table.num_rows
                progress(done, total)
            for pending in splits:
                pending.finish(self.constants(pending.task))
        finally:
            for pending in splits:
                pending.writer.close()

    def constants(self, task: Task) -> dict[str, NDArray[Any]]:
        """`answers` int32 [C, L]: ids of each class's target, −1 after its last; or nothing."""
        if not self.answers:
            return {}
        rows = self.target_ids(wording_of(task).targets)
        found = np.full((len(rows), max(map(len, rows))), NONE, np.int32)
        for at, ids in enumerate(rows):
            found[at, : len(ids)] = ids
        return {"answers": found}

    def open(self, path: Path) -> RowFile:
        """A memory-mapped file of token ids.

        Raises:
            InputError: missing or damaged.
        """
        from actors.data.row_file import open_rows  # late: loads torch

        return open_rows(path)

    def preview(self, rows: PreparedRows, at: Tensor) -> list[str]:
        """Texts of these rows, as the model reads them, cut to `PREVIEW` characters."""
        taken, tokenizer = rows.take(at), self.tokenizer.load()
        found = []
        lengths = taken["ids.lengths"].tolist()
        for ids in taken["ids"].split(lengths):  # type: ignore[no-untyped-call]
            text = " ".join(tokenizer.decode(ids.tolist(), skip_special_tokens=True).split())
            found.append(text if len(text) <= PREVIEW else f"{text[: PREVIEW - 1]}…")
        return found

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """{"ids": int64 [B, n], "mask": bool [B, n]}, n the longest row of the batch.

        With `fields` also `types` int64 [B, n]; with `answers` also `answers` int64 [B, C, L], −1
        after a target's last token, and for classes that a row's task has not.
        """
        import torch  # late: processes that only tokenise need none of it

        lengths = torch.cat([part["ids.lengths"] for part in parts])
        longest = int(lengths.max()) if len(lengths) else 0
        mask = torch.arange(longest) < lengths[:, None]

        def padded(name: str, empty: int) -> Tensor:
            found = torch.full(mask.shape, empty, dtype=torch.int64)
            found[mask] = torch.cat([part[name] for part in parts]).long()
            return found

        found = {"ids": padded("ids", self.pad), "mask": mask}
        if self.words == "fields":
            found["types"] = padded("types", 0)
        if self.answers:
            found["answers"] = stacked([part["answers"] for part in parts])
        return found


@dataclass
class PendingSplit:
    """A split that is being written, and how many of its rows were cut."""

    path: Path
    task: Task
    writer: Any
    cut: int = 0
    longest: int = 0

    def finish(self, constants: Mapping[str, NDArray[Any]]) -> None:
        """Write the file."""
        about = {"task": self.task.name, "cut": str(self.cut), "longest": str(self.longest)}
        self.writer.finish(constants, about)


def add(table: Any, splits: Sequence[PendingSplit], columns: Iterable[str]) -> None:
    """Write the rows of a table, which are consecutive rows of one or several files."""
    parts = table.column("part").to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
    for first, last in itertools.pairwise(edges):
        rows = table.slice(first, last - first).combine_chunks()
        pending, over = splits[parts[first]], rows.column("over").to_numpy()
        values = {}
        for name in columns:
            lists = rows.column(name).combine_chunks()
            values[name] = (lists.flatten().to_numpy(), lists.value_lengths().to_numpy())
        pending.writer.write(values, rows.column("label").to_numpy())
        pending.cut += int((over > 0).sum())
        pending.longest = max(pending.longest, int(over.max(initial=0)))


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Answers [B, C, L] of several tasks as one tensor, −1 where one has fewer or shorter ones."""
    import torch  # late: processes that only tokenise need none of it

    classes, longest = (max(part.shape[axis] for part in parts) for axis in (1, 2))
    found = torch.full((sum(map(len, parts)), classes, longest), NONE, dtype=torch.int64)
    start = 0
    for part in parts:
        found[start : start + len(part), : part.shape[1], : part.shape[2]] = part
        start += len(part)
    return found


def wording_of(task: Task) -> Wording:
    """A task's words.

    Raises:
        InputError: a task of images.
    """
    if task.wording is None:
        raise InputError(f"tasks.{task.name}: images; the pool's models read texts")
    return task.wording


def cached(path: Path) -> RowFile | None:
    """A prepared split; None where it is missing or damaged, and that is said."""
    from actors.data.row_file import open_rows  # late: loads torch
    from actors.files.checksums import again

    if not path.exists():
        return None
    try:
        return open_rows(path)
    except InputError as error:
        again(path, error)
        return None


def cut_rows(path: Path, limit: int) -> str:
    """How many rows of a prepared split were cut, in words; empty: none was, or it is not there."""
    found = cached(path)
    if found is None or found.about.get("cut", "0") == "0":
        return ""
    return (
        f"{int(found.about['cut']):,} of {len(found.labels):,} rows are longer than {limit} tokens"
        f" (the longest has {int(found.about['longest']):,}); their ends are cut off"
    )
