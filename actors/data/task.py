"""Tasks: their data, classes, and the rows of each role (fit, select, report)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from actors.checkpoints.sources import HUB_ID, resolve_data
from actors.data.class_names import Naming, check_prompts, name_classes
from actors.data.dataset_files import Layout, Split, open_folder, open_hub
from actors.data.discovery import canonical
from actors.data.prompts import DEFAULT_TEMPLATES, builtin
from actors.data.readers import Columns, local_files
from actors.data.text import glue
from actors.data.text.wording import Wording, check_fields, fields_of, targets_of
from actors.files.documents import read_json
from actors.files.fingerprint import Fingerprint, fingerprint
from fusion.errors import InputError

Indices: TypeAlias = npt.NDArray[np.int64]

Role: TypeAlias = Literal["fit", "select", "report"]

Part: TypeAlias = Literal["all", "fit", "val"]

Kind: TypeAlias = Literal["image", "text"]
"""What a row of a task is; in messages rows are "images" or "texts", the same with an s."""

VALIDATION = ("val", "validation", "valid", "dev", "validation_matched")
"""What data sets call their own validation split; `val` in a spec means any of them."""

ACCURACY = "acc"
"""Name of the metric of a task that names none."""


@dataclass(frozen=True)
class TaskSource:
    """A task as the spec gives it."""

    name: str
    dataset: str
    """A folder `path[:config]`, `embedded:<task>`, or a hub id `name[:config][@revision]`."""
    image: str | None = None
    """The image column; None: "image"."""
    label: str | None = None
    """The label column; None: "label"."""
    templates: Sequence[str] | None = None
    classnames: Sequence[str] | None = None
    head: str | None = None
    """A head file; None: the zero-shot head."""
    text: str | Sequence[str] | None = None
    """The text column or columns; None: those of the template, else "text"."""
    template: str | None = None
    """With `{column}` where a row's text goes; None: built-in, else the columns."""
    targets: Sequence[str] | Mapping[str, str] | None = None
    """Answers by label, or class name -> answer; None: built-in, else the class names."""
    metric: str | None = None
    """None: built-in, else accuracy."""
    objective: str | None = None
    """Of a model that writes text, the entropy that is minimised: `vocabulary` or `answers`; None:
    `vocabulary`."""


@dataclass(frozen=True)
class Task:
    """An opened task: names, sizes and places of its rows. Nothing is decoded yet."""

    name: str
    source: TaskSource
    dataset: str
    """The folder, or the hub id."""
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    """Each with `{}` where the class name goes."""
    layout: Layout
    origin: str = ""
    """Where class names, their order and templates come from, in words."""
    wording: Wording | None = None
    """Template, columns and targets of a text task; None: a task of images."""
    metric: str = ACCURACY
    """What the task is judged by."""

    @property
    def splits(self) -> dict[str, int]:
        """Source split -> number of rows."""
        return {name: split.rows for name, split in self.layout.splits.items()}

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the content of all splits, of a text task's wording, and of a metric other
        than accuracy. Class names, and templates of images, are not part of it."""
        parts = {name: split.fingerprint for name, split in self.layout.splits.items()}
        words = self.wording
        more: list[object] = [] if self.metric == ACCURACY else [self.metric]
        if words is not None:
            more = [words.template, list(words.columns), list(words.targets), *more]
        return fingerprint("task", parts, *more)

    def split(self, name: str) -> Split:
        """A source split by name.

        Raises:
            InputError: no split of that name.
        """
        if name not in self.layout.splits:
            raise InputError(f"task {self.name!r}: no split {name!r}; there: {list(self.splits)}")
        return self.layout.splits[name]


@dataclass(frozen=True)
class Splits:
    """Names of the splits for each role."""

    fit: str = "train"
    select: str = "val"
    report: str = "test"
    val_fraction: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """Where the rows of a role are."""

    split: str
    """A source split."""
    part: Part
    """All of it, or what `partition` gives to fit or to val."""


def open_task(source: TaskSource, kind: Kind = "image") -> Task:
    """Read a task's names and sizes from file names and metadata; decodes no row.

    Class names: see `class_names.py`. Templates of images: the spec's, else `meta.json`'s, else
    built-in, else "a photo of a {}.". For texts see `open_text_task`.

    Args:
        source: the task as the spec describes it.
        kind: what the pool's models read.

    Raises:
        InputError: missing or unusable data, class names that do not fit the labels or each other,
            a template without a field, or fields of another kind of data.
    """
    what = f"tasks.{source.name}"
    check_kind(source, kind, what)
    if kind == "text":
        return open_text_task(source, what)
    columns = Columns((source.image or "image",), source.label or "label")
    folder, layout = open_layout(source, columns, what)
    meta = {} if folder is None else read_meta(folder, what)
    known = builtin(source.name)
    naming = name_classes(
        source.classnames,
        None if layout.classnames is None else (layout.classnames, layout.named_by),
        meta.get("classnames"),
        None if known is None else (known.classnames, known.others, source.name),
        what,
    )
    check_classnames(naming.names, layout, what)
    check_prompts(naming.names, what)
    chosen: list[tuple[Sequence[str] | None, str]] = [
        (source.templates, "in the spec"),
        (meta.get("templates"), "in meta.json"),
        (known.templates if known else None, f"built in for {source.name!r}"),
        (DEFAULT_TEMPLATES, "the default"),
    ]
    templates, origin = next((tuple(given), where) for given, where in chosen if given)
    for template in templates:
        if "{}" not in template:
            raise InputError(f"{what}: template {template!r}: no {{}} for the class name")
    return Task(
        source.name,
        source,
        str(folder or source.dataset),
        naming.names,
        templates,
        layout,
        f"{naming.origin}; templates {origin}",
        metric=source.metric or ACCURACY,
    )


def open_text_task(source: TaskSource, what: str) -> Task:
    """A text task. Template, targets, metric: the spec's, else built-in for a GLUE task.

    Else the template is the text columns, joined by blanks, and targets are the class names. A task
    whose targets are all numbers may have labels with a fraction, which targets round.

    Raises:
        InputError: see `open_task`.
    """
    known, short = glue.builtin(source.name, source.dataset) or (None, "")
    built = f"built in for {short!r}"
    columns, template, template_from = worded(source, known, built, what)
    numbers = numbered_targets(source.targets, known)
    layout_columns = Columns(columns, source.label or "label", "text", numbers)
    folder, layout = open_layout(source, layout_columns, what)
    check_unmixed(layout, what)
    meta = {} if folder is None else read_meta(folder, what)
    naming = name_text_classes(source, known, numbers, layout, meta, what)
    check_classnames(naming.names, layout, what)
    check_prompts(naming.names, what)
    own = known is not None and source.classnames is None and source.targets is None
    targets = targets_of(known.targets if known and own else source.targets, naming.names, what)
    targets_from = built if own else "in the spec" if source.targets else "the class names"
    return Task(
        source.name,
        source,
        str(folder or source.dataset),
        naming.names,
        (),
        layout,
        f"{naming.origin}; template {template_from}; targets {targets_from}",
        Wording(template, columns, targets),
        source.metric or (known.metric if known else ACCURACY),
    )


def worded(
    source: TaskSource, known: glue.Glue | None, built: str, what: str
) -> tuple[tuple[str, ...], str, str]:
    """Columns, template, and where the template is from, in words.

    Raises:
        InputError: a column twice, a template without a field, or with one that is no column of the
            task.
    """
    given = (source.text,) if isinstance(source.text, str) else source.text
    if given is not None and len(set(given)) < len(given):
        raise InputError(f"{what}: text: {', '.join(given)}: a column twice; each once needed")
    template, origin = source.template, "in the spec"
    if template is None and given is None and known is not None:
        return known.columns, known.template, built
    if template is None:
        named = tuple(given or ("text",))
        braced = (column.replace("{", "{{").replace("}", "}}") for column in named)
        return named, " ".join(f"{{{column}}}" for column in braced), "the text columns"
    if given is None:
        return fields_of(template, what), template, origin
    check_fields(template, given, what)
    return tuple(given), template, origin


def numbered_targets(
    given: Sequence[str] | Mapping[str, str] | None, known: glue.Glue | None
) -> tuple[str, ...]:
    """Targets that are numbers of one precision, for labels with a fraction; empty: they are not.

    >>> numbered_targets(["0.0", "0.5", "1.0"], None), numbered_targets(["no", "yes"], None)
    (('0.0', '0.5', '1.0'), ())
    """
    if given is None:
        return tuple(known.targets.values()) if known and known.numbers else ()
    listed = () if isinstance(given, Mapping) else tuple(given)
    wholes = [target.removeprefix("-").partition(".") for target in listed]
    plain = all(
        f"{whole}{rest}".isdecimal() and f"{whole}{rest}".isascii() for whole, _, rest in wholes
    )
    same = len({len(rest) for _, _, rest in wholes}) == 1
    return listed if plain and same and wholes[0][2] else ()


def name_text_classes(
    source: TaskSource,
    known: glue.Glue | None,
    numbers: tuple[str, ...],
    layout: Layout,
    meta: Mapping[str, Any],
    what: str,
) -> Naming:
    """Class names of a text task: of labels that are numbers the targets, else as of images.

    Raises:
        InputError: see `name_classes`.
    """
    if numbers:
        return Naming(numbers, "classes are the targets, to which labels are rounded")
    no_others: Mapping[str, str] = {}
    built = None if known is None else (tuple(known.targets), no_others, source.name)
    own = None if layout.classnames is None else (layout.classnames, layout.named_by)
    return name_classes(source.classnames, own, meta.get("classnames"), built, what)


def check_unmixed(layout: Layout, what: str) -> None:
    """Raise InputError where one split holds both MNLI's matched and its mismatched rows."""
    for name, split in layout.splits.items():
        files = {Path(file).name for piece, _ in split.pieces for file in local_files(piece)}
        apart = [file for file in files if "mismatched" in file]
        if apart and len(apart) < len(files):
            raise InputError(
                f"{what}: split {name!r} mixes {apart[0]} with other files; lay them out as"
                " data/validation_matched-00000-of-00001.parquet and so on, or leave them out"
            )


def check_kind(source: TaskSource, kind: Kind, what: str) -> None:
    """Raise InputError where a task has fields of another kind of data than the pool reads."""
    texts = {name: getattr(source, name) for name in ("text", "template", "targets", "objective")}
    images = {
        "image": None if source.image == "image" else source.image,
        "templates": source.templates,
    }
    for name, value in (texts if kind == "image" else images).items():
        if value is not None:
            raise InputError(f"{what}: {name}: {value!r}; the pool's models read {kind}s")


def open_layout(source: TaskSource, columns: Columns, what: str) -> tuple[Path | None, Layout]:
    """Folder of a data set (None: of the hub), and how it lies there.

    Raises:
        InputError: see `open_task`.
    """
    folder, config = resolve_data(source.dataset, what=what)
    if folder is not None:
        return folder, open_folder(folder, columns, what, config)
    check_hub_id(source.dataset, what)
    return None, open_hub(source.dataset, columns, what)


def check_hub_id(dataset: str, what: str) -> None:
    """Raise InputError where a source is neither a folder nor shaped like a hub id."""
    name, _, revision = dataset.partition("@")
    if not HUB_ID.fullmatch(name.partition(":")[0] + (f"@{revision}" if revision else "")):
        raise InputError(
            f"{what}: dataset: {dataset!r}: neither a folder nor a hub id; allowed: a folder,"
            " embedded:NAME, name or org/name, with [:config][@revision]"
        )


def check_classnames(names: Sequence[str], layout: Layout, what: str) -> None:
    """Raise InputError where class names do not fit the labels."""
    count = len(names)
    if count < 2:
        raise InputError(f"{what}: classnames: {count}; 2 or more are needed")
    for name, split in layout.splits.items():
        if split.lowest < 0:
            raise InputError(
                f"{what}: split {name!r}: label {split.lowest}; labels from 0 are needed"
            )
    labels = max((split.labels for split in layout.splits.values()), default=0)
    if labels > count:
        lowest = min((split.lowest for split in layout.splits.values()), default=0)
        hint = "; they start at 1: labels from 0 are needed" if lowest == 1 else ""
        raise InputError(
            f"{what}: classnames: {count}; the data have {labels} classes (labels {lowest} to"
            f" {labels - 1}){hint}; give `classnames`"
        )


def read_meta(folder: Path, what: str) -> dict[str, Any]:
    """`classnames` and `templates` of a `meta.json` beside the data, if there is one."""
    file = folder / "meta.json"
    if not file.is_file():
        return {}
    meta = read_json(file, what)
    found = {name: meta[name] for name in ("classnames", "templates") if meta.get(name)}
    for name, values in found.items():
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise InputError(f"{what}: {file}: {name}: a list of strings is needed")
    return found


def assign(
    task: Task,
    splits: Splits,
    *,
    select_spelled: bool = False,
    roles: Collection[Role] = ("fit", "select", "report"),
) -> dict[Role, Place]:
    """Assign rows of a task to roles.

    A split name is one of the data set's own splits, or `val`. `val` is the data set's validation
    split under any name, else a part carved from `train`; then `train` is the rest in every role
    that names it.

    Args:
        task: an opened task.
        splits: the split names of the spec.
        select_spelled: whether the spec itself gives `select`; only then may it equal the split of
            `report`.
        roles: the roles of the task; splits of other roles may be missing.

    Raises:
        InputError: a missing or empty split, a split with empty texts, or selection on the
            reporting split without spelling it out.
    """
    wanted: dict[Role, str] = {
        "fit": splits.fit,
        "select": splits.select,
        "report": splits.report,
    }
    own = next((name for name in VALIDATION if name in task.splits), None)
    carved = (
        own is None and "train" in task.splits and not set(wanted.values()).isdisjoint(VALIDATION)
    )
    places: dict[Role, Place] = {}
    for role, name in wanted.items():
        if role not in roles:
            continue
        named = name if name in task.splits else canonical(name)
        if named in task.splits and (name in task.splits or name not in VALIDATION):
            places[role] = Place(named, "fit" if carved and named == "train" else "all")
        elif name in VALIDATION and own is not None:
            places[role] = Place(own, "all")
        elif name in VALIDATION and carved:
            places[role] = Place("train", "val")
        else:
            extra = "" if own or "train" not in task.splits else " (and val: a part of train)"
            if canonical(name) in task.layout.unlabelled:
                extra += f"; {name!r} is there and has no labels"
            raise InputError(
                f"task {task.name!r}: splits.{role}: no split {name!r};"
                f" there: {', '.join(task.splits)}{extra}"
            )
        if task.splits[places[role].split] == 0:
            raise InputError(f"task {task.name!r}: splits.{role}: split {name!r} is empty")
        if fault := task.split(places[role].split).fault:
            raise InputError(f"task {task.name!r}: splits.{role}: split {name!r}: {fault}")
    if {"select", "report"} <= set(roles):
        check_selection(task, splits, places, select_spelled)
    return places


def check_selection(
    task: Task, splits: Splits, places: Mapping[Role, Place], select_spelled: bool
) -> None:
    """Raise InputError where models would be selected on the rows they are reported on."""
    select, report = places["select"], places["report"]
    same = select == report
    if not same and select.split != report.split:
        ours, theirs = (task.split(place.split).fingerprint for place in (select, report))
        same = ours == theirs
    if same and not (select_spelled and splits.select == splits.report):
        raise InputError(
            f"task {task.name!r}: splits.select: {splits.select!r} holds the same rows as"
            f" splits.report: {splits.report!r}; to select on the reporting split all the same,"
            f" write select: {splits.report}"
        )


def partition(
    labels: npt.NDArray[np.integer], fraction: float = 0.1, seed: int = 0
) -> tuple[Indices, Indices]:
    """Split the rows of one source split, class by class: (fit indices, val indices).

    `labels` is [N]; both results are sorted int64, disjoint, and together 0 … N−1. From each class,
    round(fraction · its rows) go to val: at least one if it has two rows or more, and one always
    stays in fit. The same labels, fraction and seed give the same rows.

    Raises:
        InputError: a fraction outside (0, 1), or no class with two rows.

    >>> fit, val = partition(np.array([0, 0, 0, 0, 1, 1]), fraction=0.25)
    >>> len(fit), len(val)
    (4, 2)
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"val_fraction: {fraction}; between 0 and 1 (both excluded) allowed")
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[generator.permutation(rows)[:count]] = True
    if not chosen.any():
        raise InputError(f"val_fraction: {fraction}: none of the {len(labels)} rows can be spared")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
