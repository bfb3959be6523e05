"""From rows of texts to token ids: what Ray Data's workers run. Imports no torch when loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from actors.data.protocol import Corruption
from actors.data.readers import Chunk, FileRows, label_of, origin, table_of
from actors.data.text.corruptions import corrupted
from actors.data.text.tokenizer import loaded
from actors.data.text.wording import Wording
from actors.files.fingerprint import Fingerprint

Words: TypeAlias = Literal["prompt", "fields"]
"""What of a row is tokenised: the template with its texts, or the texts alone: the first column,
and as its pair all others, joined by blanks."""


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to know to tokenise any row."""

    contents: tuple[tuple[str, bytes], ...]
    """Files of the tokenizer."""
    fingerprint: Fingerprint
    """Of the tokenizer."""
    limit: int
    """Tokens of a row at most; longer ones lose their end, special tokens are kept."""
    words: Words
    wordings: tuple[Wording, ...]
    """By number of the file that is written."""
    corruption: Corruption | None = None
    """What is done to the texts before they are worded; None: nothing."""


class BadRow(ValueError):
    """A row that cannot be used; what is wrong with it."""


def tokenise(chunk: Chunk, recipe: Recipe) -> pa.Table:
    """Tokenise a chunk: columns ids, types (0: first text, 1: its pair), label, part, over, error.

    `over`: tokens of the row before it was cut; 0: it was not. A row that cannot be used ends the
    chunk: it is the last one, with `error` set and no ids.
    """
    rows, labels, error = usable(chunk, recipe)
    tokens = tokens_of(rows, recipe)
    bad = int(error is not None)
    count = len(rows) + bad
    return pa.table(
        {
            "ids": lists(tokens["ids"], bad, np.int32),
            "types": lists(tokens["types"], bad, np.uint8),
            "label": pa.array([*labels, *[-1] * bad], pa.int64()),
            "part": pa.array(np.full(count, chunk.part, np.int32)),
            "over": pa.array([*tokens["over"], *[0] * bad], pa.int64()),
            "error": pa.array([*[None] * len(rows), *[error] * bad], pa.string()),
        }
    )


def lists(values: Sequence[Sequence[int]], empty: int, kind: type[np.generic]) -> pa.Array:
    """Ragged rows as Arrow lists, followed by empty ones."""
    return pa.array([*values, *[()] * empty], pa.large_list(pa.from_numpy_dtype(kind)))


def usable(
    chunk: Chunk, recipe: Recipe
) -> tuple[list[tuple[str, str | None]], list[int], str | None]:
    """(text, its pair) and label of rows, up to the first that cannot be used; what is wrong."""
    texts: list[tuple[str, str | None]] = []
    labels: list[int] = []
    error = None
    try:
        assert not isinstance(chunk.rows, FileRows), "texts lie in tables"
        table = table_of(chunk.rows, keep_group=True)
        columns = chunk.rows.columns
        wording = recipe.wordings[chunk.part]
        for row in zip(
            *(table.column(name).to_pylist() for name in [*columns.inputs, columns.label]),
            strict=True,
        ):
            label = label_of(row[-1], chunk.rows)
            given = dict(zip(columns.inputs, row, strict=False))
            check_row(given, label, row[-1], chunk.classes)
            if recipe.corruption is not None:
                given = corrupted(given, chunk.start + len(texts), recipe.corruption)
            texts.append(worded(given, wording, recipe.words))
            labels.append(label)
        if len(texts) < chunk.rows.count:
            raise ValueError(f"{chunk.rows.count} rows stated, {len(texts)} there")
    except BadRow as fault:
        error = f"{chunk.name}: row {chunk.start + len(texts)}: {fault}"
    except Exception as failed:  # readers raise what they like on damaged data
        reason = " ".join(str(failed).split())[:300] or type(failed).__name__
        error = f"{chunk.name}: row {chunk.start + len(texts)} ({origin(chunk.rows)}): {reason}"
    return texts, labels, error


def check_row(given: Mapping[str, Any], label: Any, raw: Any, classes: int) -> None:
    """Raise BadRow where a text or a label cannot be used."""
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        first = " (do labels start at 1?)" if label == classes else ""
        raise BadRow(f"label {raw!r}; the {classes} classes allow 0 to {classes - 1}{first}")
    for column, text in given.items():
        if not isinstance(text, str):
            raise BadRow(f"column {column!r}: {str(text)[:80]!r}; a text needed")
        if not text.strip():
            raise BadRow(f"column {column!r}: an empty text")


def worded(given: Mapping[str, str], wording: Wording, words: Words) -> tuple[str, str | None]:
    """What of a row is tokenised: a text, and its pair."""
    if words == "prompt":
        return wording.prompt(given), None
    first, *others = (given[column] for column in wording.columns)
    return first, " ".join(others) if others else None


def tokens_of(rows: Sequence[tuple[str, str | None]], recipe: Recipe) -> dict[str, list[Any]]:
    """Ids and types of rows, cut to the limit, and the lengths of those that were longer."""
    found: dict[str, list[Any]] = {"ids": [], "types": [], "over": []}
    if not rows:
        return found
    tokenizer = loaded(recipe.fingerprint, recipe.contents)
    pairs = None if rows[0][1] is None else [pair for _, pair in rows]
    texts = [text for text, _ in rows]
    # The first pass is not cut, so that rows that are too long can be counted.
    encoded = encode(tokenizer, texts, pairs)
    over = [at for at, ids in enumerate(encoded["ids"]) if len(ids) > recipe.limit]
    found = {**encoded, "over": [0] * len(rows)}
    if over:
        again = encode(
            tokenizer,
            [texts[at] for at in over],
            None if pairs is None else [pairs[at] for at in over],
            truncation=True,
            max_length=recipe.limit,
        )
        for index, at in enumerate(over):
            found["over"][at] = len(found["ids"][at])
            found["ids"][at], found["types"][at] = again["ids"][index], again["types"][index]
    return found


def encode(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None] | None, **cut: Any
) -> dict[str, list[Any]]:
    """Ids and types of texts, special tokens added."""
    out = tokenizer(
        list(texts), None if pairs is None else list(pairs), add_special_tokens=True,
        return_attention_mask=False, return_token_type_ids=pairs is not None, verbose=False, **cut
    )  # fmt: skip
    types = out.get("token_type_ids") if pairs is not None else None
    return {"ids": out["input_ids"], "types": types or [[0] * len(ids) for ids in out["input_ids"]]}


def tokenised_targets(targets: Sequence[str], contents: Any, name: Fingerprint) -> list[list[int]]:
    """Ids of targets, special tokens (`</s>`) added."""
    found: list[list[int]] = encode(loaded(name, contents), targets, None)["ids"]
    return found
