"""How a data set lies on disk: its splits, where their rows are, what its labels are called.

Parquet folders and image folders are understood here, from names and file metadata only; all
else is left to the `datasets` library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.hashes import hash_files, hash_text
from actors.rows import FileRows, HubRows, ParquetRows, Rows
from fusion.errors import InputError

SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
"""What a file name has after its split's name."""

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

REREAD_BYTES = 64 << 20
"""A row group up to this size is cut, and read once for each cut."""


@dataclass(frozen=True)
class Split:
    """One split as the data set names it."""

    rows: int
    fingerprint: str
    """Of the content, not of its name."""
    labels: int
    """Highest label + 1, as metadata says; 0: not said."""
    pieces: tuple[tuple[Rows, bool], ...]
    """Its rows in order, and whether a piece may be cut."""

    def chunks(self, size: int) -> Iterator[tuple[int, Rows]]:
        """(number of its first row, rows), at most `size` rows where they may be cut."""
        start = 0
        for piece, cuttable in self.pieces:
            step = size if cuttable else piece.count
            for first in range(0, piece.count, max(step, 1)):
                part = cut(piece, first, min(step, piece.count - first))
                yield start + first, part
            start += piece.count


@dataclass(frozen=True)
class Layout:
    """A data set's splits and, where it says so, its class names."""

    splits: Mapping[str, Split]
    classnames: tuple[str, ...] | None


def cut(piece: Rows, first: int, count: int) -> Rows:
    """`count` rows of a piece from `first` on."""
    if isinstance(piece, FileRows):
        last = first + count
        return FileRows(piece.files[first:last], piece.labels[first:last])
    return replace(piece, offset=piece.offset + first, count=count)


def open_folder(folder: Path, image: str, label: str, what: str) -> Layout:
    """The layout of a local folder; decodes nothing.

    Args:
        folder: of parquet files (`train.parquet`, `data/train-00000-of-00002.parquet`,
            `train/0000.parquet`), of images (`train/<class>/*.png`), or of anything else that
            `datasets.load_dataset` reads.
        image: the image column.
        label: the label column.
        what: the task, as messages begin.

    Raises:
        InputError: nothing in it, a damaged file, or no such column.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted((*folder.glob("*.parquet"), *folder.glob("*/*.parquet"))):
        inside = file.parent != folder and file.parent.name != "data"
        name = file.parent.name if inside else SHARD.sub("", file.stem)
        found.setdefault(name, []).append(file)
    if found:
        layouts = {name: parquet_split(files, image, label, what) for name, files in found.items()}
        names = [named for _, named in layouts.values()]
        if any(named != names[0] for named in names):
            raise InputError(f"{what}: {folder}: its splits have different class names: {names}")
        return Layout({name: split for name, (split, _) in layouts.items()}, names[0])
    images = image_folder(folder)
    if images is not None:
        return images
    if not any(folder.iterdir()):
        raise InputError(f"{what}: {folder}: empty; parquet files or train/<class>/*.png needed")
    return open_hub(str(folder), image, label, what)


def parquet_split(
    files: list[Path], image: str, label: str, what: str
) -> tuple[Split, tuple[str, ...] | None]:
    """One split of parquet files, and its class names where the metadata holds them."""
    pieces: list[tuple[Rows, bool]] = []
    highest = -1
    names: tuple[str, ...] | None = None
    for file in files:
        parquet = open_parquet(file, what)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        check_columns(schema, image, label, f"{what}: {file}")
        named = class_label(schema, label)
        if pieces and named != names:
            raise InputError(f"{what}: {file}: class names differ from those of {files[0].name}")
        names = named
        for group in range(metadata.num_row_groups):
            about = metadata.row_group(group)
            rows = ParquetRows(str(file), group, 0, about.num_rows, image, label)
            pieces.append((rows, about.total_byte_size <= REREAD_BYTES))
            highest = max(highest, highest_label(parquet, group, label))
    content = hash_files({str(index): file for index, file in enumerate(files)})
    total = sum(rows.count for rows, _ in pieces)
    fingerprint = hash_text("parquet", content, image, label)
    return Split(total, fingerprint, highest + 1, tuple(pieces)), names


def open_parquet(file: Path, what: str) -> Any:
    """A parquet file, its footer read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: {file}: not a parquet file: {reason}") from None


def check_columns(schema: Any, image: str, label: str, where: str) -> None:
    """Raise InputError where a column is missing or of a kind that cannot be used."""
    import pyarrow.types as types

    for field, column in (("image", image), ("label", label)):
        if column not in schema.names:
            raise InputError(f"{where}: {field}: no column {column!r}; there: {schema.names}")
    kind = schema.field(image).type
    parts = {field.name for field in kind} if types.is_struct(kind) else set()
    if "bytes" not in parts and not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise InputError(f"{where}: image: column {image!r} holds {kind}; encoded images needed")
    kind = schema.field(label).type
    if not (types.is_integer(kind) or types.is_boolean(kind)):
        raise InputError(
            f"{where}: label: column {label!r} holds {kind}; whole numbers from 0 needed"
        )


def class_label(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names of a `ClassLabel` column, from the metadata that `datasets` writes."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def highest_label(parquet: Any, group: int, label: str) -> int:
    """The highest label of a row group: from its statistics, else from the column itself."""
    about = parquet.metadata.row_group(group)
    for index in range(about.num_columns):
        column = about.column(index)
        stated = column.path_in_schema == label and column.is_stats_set
        if stated and column.statistics.has_min_max:
            return int(column.statistics.max)
    import pyarrow.compute as pc

    highest = pc.max(parquet.read_row_group(group, columns=[label]).column(label)).as_py()
    return -1 if highest is None else int(highest)


def image_folder(folder: Path) -> Layout | None:
    """`<split>/<class>/*.png`, or `<class>/*.png` as one split "train"; None: neither."""
    splits = {
        split.name: {each.name: images_in(each) for each in folders(split)}
        for split in folders(folder)
    }
    splits = {name: classes for name, classes in splits.items() if any(classes.values())}
    if not splits:
        classes = {each.name: images_in(each) for each in folders(folder)}
        if not any(classes.values()):
            return None
        splits = {"train": classes}
    names = sorted(
        {name for classes in splits.values() for name, files in classes.items() if files}
    )
    found = {}
    for split, classes in splits.items():
        labelled = [
            (file, label) for label, name in enumerate(names) for file in classes.get(name, ())
        ]
        files = [file for file, _ in labelled]
        content = hash_files({f"{file.parent.name}/{file.name}": file for file in files})
        rows = FileRows(tuple(str(file) for file in files), tuple(label for _, label in labelled))
        fingerprint = hash_text("files", content, names)
        found[split] = Split(len(files), fingerprint, len(names), ((rows, True),))
    return Layout(found, tuple(names))


def folders(folder: Path) -> Iterable[Path]:
    """Its sub-folders, in order of name."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


def images_in(folder: Path) -> list[Path]:
    """Its image files, in order of name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def open_hub(dataset: str, image: str, label: str, what: str) -> Layout:
    """A data set that the `datasets` library reads: `name[:config][@revision]`.

    Its metadata are enough where they list splits; otherwise it is downloaded.

    Raises:
        InputError: there is none of that name, or no such column.
    """
    import datasets

    datasets.disable_progress_bars()
    name, _, revision = dataset.partition("@")
    name, _, config = name.partition(":")
    address = (name, config or None)
    try:
        offline_if_unreachable(name)
        builder = datasets.load_dataset_builder(*address, revision=revision or None)
        features = builder.info.features
        sizes = {split: part.num_examples for split, part in (builder.info.splits or {}).items()}
        if not features or not sizes:
            loaded = datasets.load_dataset(*address, revision=revision or None)
            sizes = {split: part.num_rows for split, part in loaded.items()}
            features = next(iter(loaded.values())).features
    except Exception as error:  # `datasets` raises what its many readers raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what}: dataset: {dataset!r}: no such folder, and `datasets` cannot read it: {reason}"
        ) from None
    for field, column in (("image", image), ("label", label)):
        if column not in features:
            raise InputError(
                f"{what}: {dataset}: {field}: no column {column!r}; there: {list(features)}"
            )
    names = getattr(features[label], "names", None)
    found = {}
    for split, count in sizes.items():
        rows = HubRows(name, config or None, revision or None, split, 0, count, image, label)
        fingerprint = hash_text("hub", name, builder.config_id, builder.hash, split, image, label)
        found[str(split)] = Split(count, fingerprint, 0, ((rows, True),))
    return Layout(found, tuple(names) if names else None)


def offline_if_unreachable(name: str) -> None:
    """Switch the hub libraries to their caches where the hub does not answer at once.

    `datasets` would try six times, half a minute in all, before it looks into its cache or says
    that a path is misspelt. The switch holds for this process: the network will not be back
    within one sweep's preparation, and the caches are asked first in any case.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).exists() or constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError:
        pass  # it answers: `datasets` will say what is wrong
    except Exception:  # whatever the HTTP client raises when there is no way there
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
