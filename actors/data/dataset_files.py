"""Read the layout of a data set on disk: its splits, the files of their rows, its class names.

`discovery.py` decides which files are data. This file reads Parquet, Arrow and image files, by
their metadata and names only. The `datasets` library reads CSV, JSON and tar files (webdataset),
and data sets of the hub. A folder written by `Dataset.save_to_disk` is a folder of Arrow files.

The label of an image is the folder it lies in. Where there is a `metadata.csv`, `.jsonl` or
`.parquet` (columns `file_name` and the label's name), labels come from that file alone. Folder
names that are all whole numbers are sorted as numbers, others as text.

A split without labels (images in no class folder, labels all -1 or missing) cannot be used;
`Layout.unlabelled` lists these splits.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from actors.data.discovery import File, Found, Left, discover, leave
from actors.data.readers import (
    ArrowRows,
    Columns,
    FileRows,
    Library,
    LibraryRows,
    ParquetRows,
    Rows,
    arrow_table,
    library_table,
    named_file,
)
from actors.files.documents import LFS, check_pointer, parse_json, read_json
from actors.files.hashes import hash_files, hash_text
from actors.files.paths import inside
from fusion.errors import InputError, one_line, reading

REREAD_BYTES = 64 << 20
"""A row group up to this size is cut, and read once for each cut."""

NAMED_ROWS = 256
"""Rows read at once where images may be named instead of held."""

FOLDERS = "folder names"
CLASS_LABEL = "ClassLabel"
METADATA = "metadata"
VALUES = "values of the label column"


@dataclass(frozen=True)
class Split:
    """One split, under the data set's own name for it."""

    rows: int
    fingerprint: str
    """Of the content, not of its name."""
    labels: int
    """Highest label + 1, as metadata says; 0: not said."""
    pieces: tuple[tuple[Rows, bool], ...]
    """Its rows in order, and whether a piece may be cut."""
    lowest: int = 0
    """Lowest label, as metadata says; 0 where they do not."""
    fault: str | None = None
    """Why its rows cannot be used. None: nothing is known against them."""

    def chunks(self, size: int) -> Iterator[tuple[int, Rows]]:
        """(number of the first row, rows): pieces of at most `size` rows where they can be cut."""
        start = 0
        for piece, cuttable in self.pieces:
            step = size if cuttable else piece.count
            for first in range(0, piece.count, max(step, 1)):
                part = cut(piece, first, min(step, piece.count - first))
                yield start + first, part
            start += piece.count


@dataclass(frozen=True)
class Layout:
    """A data set's splits and, if it has them, its class names."""

    splits: Mapping[str, Split]
    classnames: tuple[str, ...] | None
    named_by: str = CLASS_LABEL
    """Where the data's own class names are."""
    unlabelled: tuple[str, ...] = ()
    """Splits that cannot be used, for want of labels."""
    config: str | None = None
    used: int = 0
    """Files that rows are read from; 0: not of this machine."""
    left: Left = field(default_factory=dict)
    """Why files are left out -> how many, and the first."""


class NoLabels(InputError):
    """A table without a label column."""


def cut(piece: Rows, first: int, count: int) -> Rows:
    """`count` rows of a piece, starting at `first`."""
    if isinstance(piece, FileRows):
        last = first + count
        return FileRows(piece.files[first:last], piece.labels[first:last])
    return replace(piece, offset=piece.offset + first, count=count)


def open_folder(folder: Path, columns: Columns, what: str, config: str | None = None) -> Layout:
    """Read the layout of a local folder; decodes nothing.

    Args:
        folder: as for `discovery.discover`.
        columns: the columns to read, if the folder holds tables.
        what: the task's name, which starts error messages.
        config: the configuration to read.

    Raises:
        InputError: no data, a damaged file, a missing column, or several configurations of which
            none was chosen.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return saved(folder, columns, what)
    found = discover(folder, config, what)
    if not found.splits:
        lacking = "holds no data that can be read" if found.left else "empty"
        raise InputError(
            f"{what}: {folder}: {lacking}; parquet files or train/<class>/*.png needed"
            f"{said(found.left)}"
        )
    if found.kind == "images":
        layout = image_folder(found, columns.label, what)
    elif found.kind in ("parquet", "arrow"):
        layout = tables(found, columns, what)
    else:
        layout = library_files(found, columns, what)
    if not layout.splits:
        raise InputError(
            f"{what}: {folder}: no labels: split {', '.join(layout.unlabelled)} of"
            f" {found.kind} without; a folder for each class, or a metadata.csv, is needed"
            f"{said(found.left)}"
        )
    return layout


def said(left: Left) -> str:
    """The files that were left out, as the end of an error message."""
    parts = [f"{count} {reason} ({first})" for reason, (count, first) in left.items()]
    return f"; left out: {'; '.join(parts)}" if parts else ""


def assembled(
    found: Found,
    splits: Mapping[str, tuple[Split, tuple[str, ...] | None] | None],
    named_by: str,
    what: str,
) -> Layout:
    """Make a layout of splits and their class names; a split that is None has no labels.

    Raises:
        InputError: splits with different class names.
    """
    labelled = {name: each for name, each in splits.items() if each is not None}
    names = [named for _, named in labelled.values()]
    if any(named != names[0] for named in names):
        raise InputError(f"{what}: {found.folder}: its splits have different class names: {names}")
    used = sum(len(files) for name, files in found.splits.items() if name in labelled)
    return Layout(
        {name: split for name, (split, _) in labelled.items()},
        names[0] if names else None,
        named_by,
        tuple(name for name in splits if name not in labelled),
        found.config,
        used,
        found.left,
    )


def tables(found: Found, columns: Columns, what: str) -> Layout:
    """The layout of Parquet or Arrow files."""
    read = parquet_split if found.kind == "parquet" else arrow_split
    splits: dict[str, tuple[Split, tuple[str, ...] | None] | None] = {}
    lacking: list[NoLabels] = []
    for name, files in found.splits.items():
        paths = [found.folder / file.path for file in files]
        try:
            splits[name] = read(paths, columns, what, found.folder)
        except NoLabels as error:
            splits[name] = None
            lacking.append(error)
    if lacking and not any(splits.values()):
        raise lacking[0]
    return assembled(found, splits, CLASS_LABEL, what)


def saved(folder: Path, columns: Columns, what: str) -> Layout:
    """The layout of a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    file = folder / "dataset_dict.json"
    names = read_json(file, what).get("splits") if file.is_file() else ["train"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{what}: {file}: splits: a list of names is needed")
    splits, files = {}, {}
    for name in names:
        home = inside(folder, name, f"{what}: {file}: splits") if file.is_file() else folder
        state = home / "state.json"
        listed = read_json(state, what).get("_data_files")
        paths = [
            inside(home, str(each.get("filename") if isinstance(each, dict) else each), str(state))
            for each in (listed if isinstance(listed, list) else [])
        ]
        if not paths:
            raise InputError(f"{what}: {state}: _data_files: a list of Arrow files is needed")
        splits[name] = arrow_split(paths, columns, what, folder)
        files[name] = [File(str(path), ()) for path in paths]
    return assembled(Found(folder, "arrow", files), splits, CLASS_LABEL, what)


def parquet_split(
    files: Sequence[Path], columns: Columns, what: str, folder: Path
) -> tuple[Split, tuple[str, ...] | None] | None:
    """One split of Parquet files, and its class names if the metadata hold them.

    Returns:
        None if no row has a label.
    """
    pieces: list[tuple[Rows, bool]] = []
    bounds: list[tuple[int, int]] = []
    nulls = 0
    names: tuple[str, ...] | None = None
    contents, texts = list(files), Texts(columns)
    for file in files:
        where = f"{what}: {file}"
        with reading(f"{where}: not a parquet file"):
            parquet = open_parquet(file, where)
            schema, metadata = parquet.schema_arrow, parquet.metadata
        check_columns(schema, columns, where)
        named = class_label(schema, columns.label)
        if file != files[0] and named != names:
            raise InputError(f"{where}: class names differ from those of {files[0].name}")
        names = named
        for group in range(metadata.num_row_groups):
            about = metadata.row_group(group)
            rows = ParquetRows(str(file), group, 0, about.num_rows, columns, str(folder))
            pieces.append((rows, about.total_byte_size <= REREAD_BYTES))
            with reading(where):
                found, empty = label_bounds(parquet, group, columns)
                bounds += found
                nulls += empty
                contents += files_of_rows(parquet, group, texts, file, folder)
    total = sum(rows.count for rows, _ in pieces)
    if total and all(highest < 0 for _, highest in bounds):
        return None
    check_gaps(nulls, f"{what}: {files[0]}")
    fingerprint = content_of("parquet", contents, columns, what)
    return split_of(total, fingerprint, pieces, bounds, texts), names


def split_of(
    total: int,
    fingerprint: str,
    pieces: Sequence[tuple[Rows, bool]],
    bounds: Sequence[tuple[int, int]],
    texts: Texts | None = None,
) -> Split:
    """Make a split of these rows whose labels lie within these bounds; `texts`: all were seen."""
    highest = max((high for _, high in bounds), default=-1)
    lowest = min((low for low, _ in bounds), default=0)
    fault = texts.fault if texts is not None else None
    return Split(total, fingerprint, highest + 1, tuple(pieces), lowest, fault)


def content_of(kind: str, files: Sequence[Path], columns: Columns, what: str) -> str:
    """A hash of the files' content and of the names of the columns that are read."""
    with reading(what):
        content = hash_files({str(index): file for index, file in enumerate(files)})
    return hash_text(kind, content, *columns.inputs, columns.label)


def open_parquet(file: Path, where: str) -> Any:
    """Open a Parquet file and read its footer."""
    import pyarrow.parquet as pq

    no_pointer(file, where)
    return pq.ParquetFile(file, page_checksum_verification=True)


def check_columns(schema: Any, columns: Columns, where: str, *, texts: bool = False) -> None:
    """Raise InputError where a column is missing or has an unusable type.

    `texts`: whether labels may be text, which is then the class name.
    """
    import pyarrow.types as types

    for field_, column in named_columns(columns):
        if column not in schema.names:
            kind = NoLabels if field_ == "label" else InputError
            raise kind(f"{where}: {field_}: no column {column!r}; there: {schema.names}")
        if schema.names.count(column) > 1:
            raise InputError(f"{where}: {field_}: column {column!r} is there more than once")
    for column in columns.inputs:
        kind = schema.field(column).type
        if columns.kind == "image" and not holds_images(kind):
            raise InputError(
                f"{where}: image: column {column!r} holds {kind}; encoded images needed"
            )
        if columns.kind == "text" and not is_text(kind):
            raise InputError(f"{where}: text: column {column!r} holds {kind}; texts needed")
    kind = schema.field(columns.label).type
    whole = types.is_integer(kind) or types.is_boolean(kind)
    if not (whole or (texts and is_text(kind)) or (columns.numbers and types.is_floating(kind))):
        wanted = "numbers" if columns.numbers else "whole numbers from 0"
        raise InputError(f"{where}: label: column {columns.label!r} holds {kind}; {wanted} needed")


def named_columns(columns: Columns) -> list[tuple[str, str]]:
    """(field of the sweep file, column) of each column."""
    inputs: list[tuple[str, str]] = [(columns.kind, column) for column in columns.inputs]
    return [*inputs, ("label", columns.label)]


def holds_images(kind: Any) -> bool:
    """Whether a column of an Arrow type can hold encoded images, or the names of image files."""
    import pyarrow.types as types

    parts = {field_.name for field_ in kind} if types.is_struct(kind) else set()
    bare = types.is_binary(kind) or types.is_large_binary(kind) or is_text(kind)
    return bool(parts & {"bytes", "path"}) or bare


def class_label(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` column, from the metadata that `datasets` writes."""
    try:
        features = parse_json(schema.metadata[b"huggingface"], label)["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def check_gaps(nulls: int, where: str) -> None:
    """Raise InputError where some rows of a split have a label and others have none."""
    if nulls:
        raise InputError(f"{where}: {nulls:,} rows have no label, others do; all or none needed")


def label_bounds(parquet: Any, group: int, columns: Columns) -> tuple[list[tuple[int, int]], int]:
    """[(lowest, highest label)] of a row group, and its number of missing labels.

    Read from the column itself: pyarrow ends the process where it is asked for the metadata or the
    statistics of a column chunk and the footer is damaged. No bounds if all labels are missing.

    Raises:
        ValueError: the group has another number of labels than of rows.
    """
    values = parquet.read_row_group(group, columns=[columns.label]).column(columns.label)
    stated = parquet.metadata.row_group(group).num_rows
    if len(values) != stated:
        raise ValueError(f"row group {group}: {stated} rows stated, {len(values)} labels: damaged")
    return bounds_in(values, columns), values.null_count


def bounds_in(column: Any, columns: Columns) -> list[tuple[int, int]]:
    """[(lowest, highest label)] of a column; empty if all values are missing."""
    import pyarrow.compute as pc

    found = pc.min_max(column).as_py()
    return [] if found["min"] is None else [classes_in(found["min"], found["max"], columns)]


def classes_in(lowest: Any, highest: Any, columns: Columns) -> tuple[int, int]:
    """Bounds of labels as classes; of numbers all classes, or (−1, −1) where all are below them."""
    if not columns.numbers:
        return int(lowest), int(highest)
    below = highest < min(map(float, columns.numbers))
    return (-1, -1) if below else (0, len(columns.numbers) - 1)


def files_of_rows(parquet: Any, group: int, texts: Texts, file: Path, folder: Path) -> list[Path]:
    """The image files that a row group names in place of the images' bytes.

    `texts` sees the rows of a text task.

    Raises:
        ValueError: a missing text.
        Unusable: a file outside the data set's folder.
    """
    columns = texts.columns
    if columns.kind == "text":
        texts.see(parquet.read_row_group(group, columns=list(columns.inputs)))
        return []
    image = columns.inputs[0]
    kind = parquet.schema_arrow.field(image).type
    if not may_name_files(kind) or names_none(parquet, group, image, kind):
        return []
    batches = parquet.iter_batches(NAMED_ROWS, row_groups=[group], columns=[image])
    return [file_ for batch in batches for file_ in named_in(batch.column(0), file.parent, folder)]


def may_name_files(kind: Any) -> bool:
    """Whether values of an Arrow type can name image files: texts, and structs with a path."""
    import pyarrow.types as types

    return is_text(kind) or (types.is_struct(kind) and kind.get_field_index("path") >= 0)


def names_none(parquet: Any, group: int, image: str, kind: Any) -> bool:
    """Whether all paths of a column of structs are missing; reads no image."""
    import pyarrow.compute as pc

    if is_text(kind):
        return False
    paths = parquet.read_row_group(group, columns=[f"{image}.path"]).column(image)
    return bool(pc.struct_field(paths, "path").null_count == len(paths))


class Texts:
    """The texts of a split, seen table by table: none is missing, and blank ones are counted."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.rows = 0
        """Rows seen so far."""
        self.blank: dict[str, tuple[int, int]] = {}
        """Column -> number of its blank texts, and the row of the first."""

    def see(self, table: Any) -> None:
        """The next rows.

        Raises:
            ValueError: a missing text.
        """
        import pyarrow.compute as pc

        for name in self.columns.inputs:
            column = table.column(name)
            if nulls := column.null_count:
                first = self.rows + pc.index(pc.is_null(column), True).as_py()
                raise ValueError(
                    f"text: column {name!r}: {nulls:,} rows without a text, the first is row"
                    f" {first}; each row needs one"
                )
            empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
            if count := pc.sum(empty).as_py() or 0:
                first = self.rows + pc.index(empty, True).as_py()
                before, at = self.blank.get(name, (0, first))
                self.blank[name] = (before + count, at)
        self.rows += table.num_rows

    @property
    def fault(self) -> str | None:
        """What is wrong with the rows seen; None: nothing."""
        for name, (count, first) in self.blank.items():
            return f"column {name!r}: {count:,} empty texts, the first is row {first}"
        return None


def files_in(table: Any, texts: Texts, base: Path, folder: Path) -> list[Path]:
    """The files that a table's input columns name; none of texts, which `texts` sees.

    Raises:
        ValueError: a missing text.
        Unusable: a file outside the data set's folder.
    """
    if texts.columns.kind == "text":
        texts.see(table)
        return []
    return named_in(table.column(texts.columns.inputs[0]), base, folder)


def named_in(column: Any, base: Path, folder: Path) -> list[Path]:
    """The files that the values of an image column name in place of bytes.

    Raises:
        Unusable: a file outside the data set's folder.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    kind = column.type
    if types.is_struct(kind):
        parts = {part.name for part in kind}
        if "path" not in parts:
            return []
        names = pc.struct_field(column, "path")
        if "bytes" in parts:
            names = names.filter(pc.is_null(pc.struct_field(column, "bytes")))
    elif is_text(kind):
        names = column
    else:
        names = pa.chunked_array([[]], pa.string())
    named = [name for name in names.to_pylist() if name is not None]
    return [Path(named_file(name, str(base), str(folder))) for name in named]


def arrow_split(
    files: Sequence[Path], columns: Columns, what: str, folder: Path
) -> tuple[Split, tuple[str, ...] | None] | None:
    """One split of memory-mapped Arrow files, as `datasets` writes them; None: no labels."""
    pieces: list[tuple[Rows, bool]] = []
    bounds: list[tuple[int, int]] = []
    nulls = 0
    contents, texts = list(files), Texts(columns)
    names: tuple[str, ...] | None = None
    for file in files:
        where = f"{what}: {file}"
        with reading(where):
            no_pointer(file, where)
            table = arrow_table(str(file))
        check_columns(table.schema, columns, where)
        named = class_label(table.schema, columns.label)
        if file != files[0] and named != names:
            raise InputError(f"{where}: class names differ from those of {files[0].name}")
        names = named
        with reading(where):
            bounds += bounds_in(table.column(columns.label), columns)
            nulls += table.column(columns.label).null_count
            contents += files_in(table, texts, file.parent, folder)
        rows = ArrowRows(str(file), 0, table.num_rows, columns, str(folder))
        pieces.append((rows, True))
    total = sum(rows.count for rows, _ in pieces)
    if total and all(highest < 0 for _, highest in bounds):
        return None
    check_gaps(nulls, f"{what}: {files[0]}")
    content = content_of("arrow", contents, columns, what)
    return split_of(total, content, pieces, bounds, texts), names


def image_folder(found: Found, label: str, what: str) -> Layout:
    """The layout of image files, labelled by folders or by metadata files."""
    if found.metadata:
        labels, names = by_metadata(found, label, what)
        named_by = METADATA
    else:
        labels, names = by_folder(found, what)
        named_by = FOLDERS
    splits: dict[str, tuple[Split, tuple[str, ...] | None] | None] = {}
    for split, labelled in labels.items():
        if not labelled:
            splits[split] = None
            continue
        files = [found.folder / file for file, _ in labelled]
        numbers = [number for _, number in labelled]
        with reading(what):
            check_images(files, what)
            content = hash_files({str(index): file for index, file in enumerate(files)})
        rows = FileRows(tuple(str(file) for file in files), tuple(numbers))
        bounds = [(min(numbers), max(numbers))]
        fingerprint = hash_text("files-2", content, numbers)
        splits[split] = (split_of(len(files), fingerprint, [(rows, True)], bounds), names)
    kept = {split: [File(file, ()) for file, _ in rows] for split, rows in labels.items()}
    return assembled(replace(found, splits=kept), splits, named_by, what)


def check_images(files: Sequence[Path], what: str) -> None:
    """Raise InputError where the first image file is a Git LFS pointer: then all of them are."""
    no_pointer(files[0], f"{what}: {files[0]}")


def no_pointer(file: Path, where: str) -> None:
    """Raise InputError where a file is a Git LFS pointer."""
    with file.open("rb") as stream:
        check_pointer(stream.read(len(LFS)), where)


Labelled = dict[str, list[tuple[str, int]]]
"""Split -> (file, label) a row; empty: no labels."""


def by_folder(found: Found, what: str) -> tuple[Labelled, tuple[str, ...]]:
    """Label images by the folder they lie in.

    Raises:
        InputError: class folders of one split at different depths.
    """
    classed: dict[str, list[tuple[str, str]]] = {}
    for split, files in found.splits.items():
        within = [file for file in files if file.inner]
        depths = {len(file.inner): file.path for file in reversed(within)}
        if len(depths) > 1:
            one, other = (depths[depth] for depth in sorted(depths)[:2])
            raise InputError(
                f"{what}: {found.folder}: images in class folders at different depths: {one} and"
                f" {other}; name them in a metadata.csv, or move them"
            )
        if within:
            for file in files:
                if not file.inner:
                    leave(found.left, f"in no class folder of split {split}", file.path)
        classed[split] = [(file.path, file.inner[-1]) for file in within]
    for split in strange(classed):
        classed[split] = []
    names = in_order({name for rows in classed.values() for _, name in rows})
    number = {name: index for index, name in enumerate(names)}
    labels = {
        split: [(file, number[name]) for file, name in sorted(rows, key=lambda row: number[row[1]])]
        for split, rows in classed.items()
    }
    return labels, names


def strange(classed: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Splits without labels: their images lie in one folder that no other split has as a class."""
    named = {split: {name for _, name in rows} for split, rows in classed.items()}
    found = []
    for split, own in named.items():
        others = set().union(*(each for other, each in named.items() if other != split))
        if len(own) == 1 and len(others) > 1 and not own & others:
            found.append(split)
    return found


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: sorted as numbers if all are, else as text.

    >>> in_order({"10", "9", "0"}), in_order({"10", "9", "a"})
    (('0', '9', '10'), ('10', '9', 'a'))
    """
    if all(name.isascii() and name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def by_metadata(found: Found, label: str, what: str) -> tuple[Labelled, tuple[str, ...] | None]:
    """Label images by the metadata files alone; images that no file lists are left out.

    Raises:
        InputError: a missing column, a missing image, or one with two labels.
    """
    split_by_file = {file.path: split for split, files in found.splits.items() for file in files}
    rows: dict[str, list[tuple[str, Any]]] = {split: [] for split in found.splits}
    labelled: dict[str, Any] = {}
    for name in found.metadata:
        where = f"{what}: {found.folder / name}"
        for file, value in metadata_rows(found.folder, name, label, where):
            if file not in split_by_file:
                raise InputError(f"{where}: file_name: {file!r}: no such image in the data")
            if labelled.setdefault(file, value) != value:
                raise InputError(
                    f"{where}: file_name: {file!r}: label {value!r} here, {labelled[file]!r} in"
                    " another row; one label for each image needed"
                )
            rows[split_by_file[file]].append((file, value))
    named = {file for each in rows.values() for file, _ in each}
    for file in sorted(split_by_file.keys() - named):
        leave(found.left, "named by no metadata file", file)
    values = [value for each in rows.values() for _, value in each if value is not None]
    texts = any(isinstance(value, str) for value in values)
    names = in_order({str(value) for value in values}) if texts else None
    labels: Labelled = {}
    for split, each in rows.items():
        known = [value for _, value in each if value is not None]
        if known and len(known) < len(each):
            raise InputError(f"{what}: {found.folder}: split {split!r}: images without a label")
        if texts and names:
            labels[split] = (
                [(file, names.index(str(value))) for file, value in each] if known else []
            )
        else:
            labels[split] = [(file, whole(value, what)) for file, value in each] if known else []
    return labels, names


def whole(value: Any, what: str) -> int:
    """A label of a metadata file as a whole number."""
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise InputError(f"{what}: label {value!r}; whole numbers from 0, or texts, are needed")


def metadata_rows(folder: Path, name: str, label: str, where: str) -> list[tuple[str, Any]]:
    """(image file, label) of each row of one metadata file."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    file = folder / name
    read = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    with reading(where):
        no_pointer(file, where)
        table = read[file.suffix](str(file))
        for column in ("file_name", label):
            if table.schema.names.count(column) != 1:
                raise InputError(
                    f"{where}: one column {column!r} needed; there: {table.schema.names}"
                )
        base = PurePosixPath(name).parent
        found = []
        for given, value in zip(
            table.column("file_name").to_pylist(), table.column(label).to_pylist(), strict=True
        ):
            path = PurePosixPath(str(given))
            if path.is_absolute() or ".." in path.parts:
                raise InputError(
                    f"{where}: file_name: {str(given)[:80]!r}; a path inside the data set's folder"
                )
            found.append((str(base / path), value))
    return found


def library_files(found: Found, columns: Columns, what: str) -> Layout:
    """The layout of CSV, JSON or tar files, read by `datasets`."""
    tables = {}
    for name, files in found.splits.items():
        paths = tuple(str(found.folder / file.path) for file in files)
        tabs = ".tsv" in PurePosixPath(files[0].path.lower()).suffixes
        for path in paths:
            with reading(f"{what}: {path}"):
                no_pointer(Path(path), f"{what}: {path}")
                check_header(path, columns, found.kind, "\t" if tabs else ",", f"{what}: {path}")
        with reading(what):
            content = hash_files({path: Path(path) for path in paths})
        source = Library(found.kind, None, None, name, paths, "\t" if tabs else "", content)
        with reading(f"{what}: {found.folder}: `datasets` cannot read it"):
            tables[name] = (source, library_table(source, columns.inputs[0]))
    values: set[str] = set()
    splits: dict[str, tuple[Split, tuple[str, ...] | None] | None] = dict.fromkeys(tables)
    if any(columns.label in table.schema.names for _, table in tables.values()):
        tables = {n: each for n, each in tables.items() if columns.label in each[1].schema.names}
    for _, table in tables.values():
        check_columns(table.schema, columns, f"{what}: {found.folder}", texts=True)
        if is_text(table.schema.field(columns.label).type):
            values |= {str(v) for v in table.column(columns.label).unique().to_pylist() if v}
    names = in_order(values) if values else None
    for name, (source, table) in tables.items():
        own = class_label(table.schema, columns.label) or names
        label = table.column(columns.label)
        bounds = [(0, len(names) - 1)] if names else bounds_in(label, columns)
        if label.null_count == len(label) or all(highest < 0 for _, highest in bounds):
            continue
        check_gaps(label.null_count, f"{what}: {source.files[0]}")
        with reading(f"{what}: {found.folder}"):
            contents, texts = [*map(Path, source.files)], Texts(columns)
            contents += files_in(table, texts, found.folder, found.folder)
        rows = LibraryRows(source, 0, table.num_rows, columns, str(found.folder), names)
        fingerprint = hash_text(content_of(found.kind, contents, columns, what), names)
        split = split_of(table.num_rows, fingerprint, [(rows, True)], bounds, texts)
        splits[name] = (split, own)
    return assembled(found, splits, VALUES if names else CLASS_LABEL, what)


def check_header(file: str, columns: Columns, kind: str, separator: str, where: str) -> None:
    """Raise InputError where a CSV file names a column twice that is read.

    The library would give the second one another name, and read the first.
    """
    if kind != "csv":
        return
    import fsspec

    with fsspec.open(file, "rt", compression="infer", encoding="utf-8-sig", newline="") as stream:
        names: list[str] = next(filter(None, csv.reader(stream, delimiter=separator)), [])
    for field_, column in named_columns(columns):
        if names.count(column) > 1:
            raise InputError(f"{where}: {field_}: column {column!r} is there more than once")


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text."""
    return str(kind) in ("string", "large_string")


def open_hub(dataset: str, columns: Columns, what: str) -> Layout:
    """The layout of a data set that the `datasets` library reads: `name[:config][@revision]`.

    Downloads the data only if the metadata do not list the splits.

    Raises:
        InputError: no data set of that name, or a missing column.
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
        raise InputError(
            f"{what}: dataset: {dataset!r}: no such folder, and `datasets` cannot read it:"
            f" {one_line(error)[:300]}"
        ) from None
    for field_, column in named_columns(columns):
        if column not in features:
            raise InputError(
                f"{what}: {dataset}: {field_}: no column {column!r}; there: {list(features)}"
            )
        kind = getattr(features[column], "dtype", None)
        if field_ == "text" and not is_text(kind):
            raise InputError(
                f"{what}: {dataset}: text: column {column!r} holds {kind}; texts needed"
            )
    names = getattr(features[columns.label], "names", None)
    found = {}
    for split, count in sizes.items():
        source = Library(name, config or None, revision or None, str(split))
        rows = LibraryRows(source, 0, count, columns)
        fingerprint = hash_text(
            *("hub", name, builder.config_id, builder.hash, split, *columns.inputs, columns.label)
        )
        found[str(split)] = Split(count, fingerprint, 0, ((rows, True),))
    return Layout(found, tuple(names) if names else None, config=config or None)


def offline_if_unreachable(name: str) -> None:
    """Switch the hub libraries to offline mode if the hub does not answer at once.

    Otherwise `datasets` retries six times, half a minute in all, before it uses its cache or
    reports a misspelt path. The switch lasts as long as this process: the network will not return
    within the preparation of one sweep, and the caches are read first in any case.
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
