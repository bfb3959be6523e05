"""Find the data files of a folder and their splits, from names alone.

The rules are those of `datasets`: its words for splits in folder and file names, its layout
`data/<split>-00000-of-00001.*`, and its `configs` in the YAML part of a README.md. The patterns are
applied to one listing of the folder, so that a million files are listed only once. These rules are
stricter where those of `datasets` would mix rows or leave out files by coincidence:

* Words are compared without case: `Train/` and `Test/` are two splits, not one.
* A file below two folders named like splits belongs to the outer one (`test/train/1.png` to test);
  a name that matches two splits is refused.
* If only some of the images are named like splits, the folder is refused.
* Folders that each hold splits of their own are configurations; the user must choose one.

Hidden files and folders, and the leftovers of editors, file managers and archives, are never data.
Links are followed, since a folder may keep its files elsewhere (as the hub's cache does); a link
back to a folder that contains it is not followed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from actors.data.images.decode import SUFFIXES
from actors.files.documents import parse_yaml, read_bytes
from fusion.errors import InputError, reading

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".tar": "webdataset",
    **dict.fromkeys(SUFFIXES, "images"),
}
"""Suffix -> what reads it; the names are those of `datasets`, but for images."""

SPLIT_WORDS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> its words in names: `datasets.data_files.SPLIT_KEYWORDS`. That library takes a second to
import."""

BETWEEN = "[-._ 0-9]"
"""What may be beside such a word: `datasets.data_files.NON_WORDS_CHARS`."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that say what is in image files; the names are those of `datasets`."""

ABOUT = frozenset(
    (
        *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"),
        *("state.json", "meta.json", "README.md"),
    )
)
"""Files about data, not of data."""

LEFTOVERS = (
    *("*~", "#*#", "~$*", "Thumbs.db*", "ehthumbs*.db", "desktop.ini", "Icon\r"),
    *(
        "@eaDir",
        "#recycle",
        "#snapshot",
        "_gsdata_",
        "$RECYCLE.BIN",
        "lost+found",
        "System Volume Information",
    ),
)
"""What editors, file managers, archives and Python leave behind; never data."""

SHARDED = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
"""`datasets.data_files.SPLIT_PATTERN_SHARDED`."""

CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Characters that no name in a message may hold, and what stands for bytes that are no UTF-8."""

Left = dict[str, tuple[int, str]]
"""Why files are left out -> how many, and the first of them."""


@dataclass(frozen=True)
class File:
    """One data file of a split."""

    path: str
    """Relative to the data set's folder, with `/`."""
    inner: tuple[str, ...]
    """The folders between it and its split's own folder."""


@dataclass(frozen=True)
class Found:
    """The data files found in a folder."""

    folder: Path
    kind: str
    """A value of `KINDS`; empty: nothing that is read here."""
    splits: Mapping[str, Sequence[File]]
    metadata: Sequence[str] = ()
    """Files that say what is in the images."""
    config: str | None = None
    left: Left = field(default_factory=dict)


def discover(folder: Path, config: str | None, what: str) -> Found:
    """Find the data files of a folder, by split.

    Args:
        folder: the data set's folder.
        config: the configuration; None: the only one, or the declared default.
        what: the task's name, which starts error messages.

    Raises:
        InputError: several configurations of which none was chosen, or an ambiguous name.
    """
    left: Left = {}
    data, metadata = [], []
    for name in listing(folder, left, what):
        base = PurePosixPath(name).name
        if base in METADATA:
            metadata.append(name)
        elif base in ABOUT:
            continue
        elif kind_of(name) is None:
            leave(left, "no data, or of a format that is not read", name)
        else:
            data.append(name)
    if not data and metadata:  # tables like any, where there are no images
        data, metadata = metadata, []
    declared = configurations(folder, what)
    if declared:
        config = choose(config, list(declared), default_of(declared), f"{what}: {folder}")
        splits, rest = declared_splits(declared[config], data, f"{what}: {folder}: config {config}")
        rest = [name for name in data if name in rest]
        reason = f"not of the configuration {config!r}"
    else:
        config, chosen = configured(data, config, f"{what}: {folder}")
        for name in sorted(set(data) - set(chosen)):
            leave(left, f"not of the configuration {config!r}", name)
        splits, rest = resolve(chosen, f"{what}: {folder}")
        reason = "in no split by its name"
    for name in rest:
        leave(left, reason, name)
    return of_one_kind(Found(folder, "", splits, metadata, config, left), f"{what}: {folder}")


def of_one_kind(found: Found, where: str) -> Found:
    """Keep only the files of the most common kind; Parquet where two are equally common.

    Raises:
        InputError: a split has no file of that kind.
    """
    counted: Counter[str] = Counter()
    for files in found.splits.values():
        counted.update(kind_of(file.path) or "" for file in files)
    if not counted:
        return found
    kind = max(counted, key=lambda each: (counted[each], each == "parquet", each))
    splits = {}
    for split, files in found.splits.items():
        splits[split] = [file for file in files if kind_of(file.path) == kind]
        if not splits[split]:
            raise InputError(
                f"{where}: split {split!r} holds {kind_of(files[0].path)} ({files[0].path}), the"
                f" others {kind}; one kind of files is needed"
            )
        for file in files:
            if kind_of(file.path) != kind:
                leave(found.left, f"not {kind}, as most of the data", file.path)
    metadata = found.metadata if kind == "images" else ()
    for name in found.metadata if kind != "images" else ():
        leave(found.left, "about images, of which there are none", name)
    return Found(found.folder, kind, splits, metadata, found.config, found.left)


def leave(left: Left, reason: str, name: str) -> None:
    """Count a file that was left out, with the reason."""
    count, first = left.get(reason, (0, CONTROL.sub(lambda c: ascii(c[0])[1:-1], name)))
    left[reason] = (count + 1, first)


def kind_of(name: str) -> str | None:
    """The kind of a file, by its suffix; None: nothing reads it."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes[-1:] in ([".gz"], [".bz2"], [".xz"], [".zst"]) and len(suffixes) > 1:
        kind = KINDS.get(suffixes[-2])
        return kind if kind in ("csv", "json") else None
    return KINDS.get(suffixes[-1]) if suffixes else None


def listing(folder: Path, left: Left, what: str) -> list[str]:
    """All data files below a folder as sorted relative paths, separated by `/`."""
    found: list[str] = []
    with reading(f"{what}: {folder}"):
        walk(folder, "", frozenset({os.path.realpath(folder)}), found, left)
    return sorted(found, key=lambda name: PurePosixPath(name).parts)


def walk(folder: Path, prefix: str, around: frozenset[str], found: list[str], left: Left) -> None:
    """Add the files of one folder to `found`, and those left out to `left`."""
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        name = prefix + entry.name
        if leaving(entry.name) or (entry.name.startswith("__") and entry.is_dir()):
            leave(left, "hidden, or left by an editor or archive", name)
        elif CONTROL.search(name):
            leave(left, "control characters in the name", name)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in around:
                leave(left, "a link to a folder around it", name)
            else:
                walk(Path(entry.path), f"{name}/", around | {real}, found, left)
        elif entry.is_file():
            found.append(name)
        else:
            leave(left, "no regular file, or a link to nothing", name)


def leaving(name: str) -> bool:
    """Whether a file or folder of this name is a hidden file or a leftover, never data."""
    return name.startswith(".") or any(fnmatch(name, each) for each in LEFTOVERS)


@lru_cache(maxsize=1 << 14)
def words(text: str, *, folder: bool) -> frozenset[str]:
    """The splits that a folder or file name matches in `datasets`."""
    return frozenset(
        split
        for split, pattern in patterns(folder=folder).items()
        if pattern.fullmatch(text.lower())
    )


@cache
def patterns(*, folder: bool) -> Mapping[str, re.Pattern[str]]:
    """Split -> pattern of its words in names, as in `datasets`."""
    found = {}
    for split, keywords in SPLIT_WORDS.items():
        any_of = "|".join(keywords)
        end = f"(?:{BETWEEN}.*)?" if folder else f"{BETWEEN}.*"
        found[split] = re.compile(f"(?:.*{BETWEEN})?(?:{any_of}){end}", re.DOTALL)
    return found


def canonical(split: str) -> str:
    """The name that `datasets` uses for a split: "validation" for "val", "test" for "eval".

    >>> canonical("val"), canonical("Testing"), canonical("extra")
    ('validation', 'test', 'extra')
    """
    named = (name for name, words in SPLIT_WORDS.items() if split.lower() in words)
    return next(named, split)


def resolve(names: Sequence[str], where: str) -> tuple[dict[str, list[File]], list[str]]:
    """Sort files by split; the second result holds files that match no split.

    Raises:
        InputError: a name that matches two splits, or names of which only some match one.
    """
    splits: dict[str, list[File]] = {}
    sharded = {name: match for name in names if (match := SHARDED.fullmatch(name))}
    if sharded:
        for name, match in sharded.items():
            splits.setdefault(match["split"], []).append(File(name, ()))
        return ordered(splits), [name for name in names if name not in sharded]
    depth = shared(names)
    rest = []
    for name in names:
        parents = PurePosixPath(name).parts[depth:-1]
        at = outermost(parents, f"{where}: {name}")
        if at is None:
            rest.append(name)
        else:
            (split,) = words(parents[at], folder=True)
            splits.setdefault(split, []).append(File(name, parents[at + 1 :]))
    return (ordered(splits), rest) if splits else by_file_name(names, depth, where)


def by_file_name(
    names: Sequence[str], depth: int, where: str
) -> tuple[dict[str, list[File]], list[str]]:
    """Sort files by the split in their own names; all go to "train" if no name has one."""
    splits: dict[str, list[File]] = {}
    rest = []
    for name in names:
        path = PurePosixPath(name)
        meant = words(path.name, folder=False)
        if len(meant) > 1:
            raise InputError(f"{where}: {name}: its name means the splits {sorted(meant)}")
        for split in meant:
            splits.setdefault(split, []).append(File(name, path.parts[depth:-1]))
        if not meant:
            rest.append(name)
    if not splits:
        inner = [(name, PurePosixPath(name).parts[depth:-1]) for name in names]
        return ({"train": [File(*each) for each in inner]} if names else {}), []
    image = next((name for name in rest if kind_of(name) == "images"), None)
    split, (file, *_) = next(iter(splits.items()))
    if image is not None and kind_of(file.path) == "images":
        raise InputError(
            f"{where}: {file.path} is named like split {split!r}, {image} like none; name all"
            " images so or none, or use folders train/, val/ and test/"
        )
    return ordered(splits), rest


def ordered(splits: Mapping[str, list[File]]) -> dict[str, list[File]]:
    """Order splits: train, validation, test, then others by name."""
    known = ["train", "validation", "test"]
    return {
        name: splits[name]
        for name in [*(n for n in known if n in splits), *sorted(splits.keys() - set(known))]
    }


def outermost(parents: Sequence[str], where: str) -> int | None:
    """Depth of the outermost folder around a file that names a split; None: no folder does."""
    doubtful = None
    for at, part in enumerate(parents):
        meant = words(part, folder=True)
        if len(meant) == 1:
            return at
        doubtful = doubtful or (part if meant else None)
    if doubtful is not None:
        meant = words(doubtful, folder=True)
        raise InputError(f"{where}: folder {doubtful!r} means the splits {sorted(meant)}")
    return None


def shared(names: Sequence[str]) -> int:
    """Number of outer folders that all files share and that name no split."""
    if not names:
        return 0
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    while all(len(each) > depth for each in parents):
        part = parents[0][depth]
        if any(each[depth] != part for each in parents):
            break
        meant = words(part, folder=True)
        inner = {
            split
            for each in set(parents)
            for other in each[depth + 1 :]
            for split in words(other, folder=True)
        }
        if meant and not inner - meant:
            break
        depth += 1
    return depth


def configured(
    names: Sequence[str], config: str | None, where: str
) -> tuple[str | None, Sequence[str]]:
    """The chosen configuration and its files, where several folders hold data of their own.

    Raises:
        InputError: see `choose`.
    """
    if any(SHARDED.fullmatch(name) for name in names) and config is None:
        return None, names
    depth = shared(names)
    tops: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts[depth:]
        tops.setdefault(parts[0] if len(parts) > 1 else "", []).append(name)
    own = {
        top: inside
        for top, inside in tops.items()
        if top and not words(top, folder=True) and apart(inside, depth + 1)
    }
    split = any(words(top, folder=True) for top in tops if top)
    if config is None and (
        len(own) < 2 or split or not all(kind_of(name) == "images" for name in tops.get("", []))
    ):
        return None, names
    chosen = choose(config, list(own), None, where)
    return chosen, own[chosen]


def apart(names: Sequence[str], depth: int) -> bool:
    """Whether a folder's files form a data set of their own: tables, or images in splits."""
    if all(kind_of(name) != "images" for name in names):
        return True
    parents = {PurePosixPath(name).parts[depth:-1] for name in names}
    return any(words(part, folder=True) for each in parents for part in each)


def choose(config: str | None, known: Sequence[str], default: str | None, where: str) -> str:
    """Choose the configuration.

    Raises:
        InputError: no configuration of that name, or several of which none was chosen.
    """
    if config is not None and config not in known:
        there = f"there: {', '.join(sorted(known))}" if known else "there are none"
        raise InputError(f"{where}: no configuration {config!r}; {there}")
    chosen = config or (known[0] if len(known) == 1 else default)
    if chosen is None:
        raise InputError(
            f"{where}: several configurations: {', '.join(sorted(known))}; choose one: FOLDER:NAME"
        )
    return chosen


def configurations(folder: Path, what: str) -> dict[str, Mapping[str, Any]]:
    """Configurations declared in the YAML part of a README.md: name -> its entry."""
    file = folder / "README.md"
    if not file.is_file():
        return {}
    text = read_bytes(file, what).decode(errors="replace")
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    about = parse_yaml(block[1], f"{what}: {file}") if block else None
    listed = about.get("configs") if isinstance(about, dict) else None
    found = {}
    for entry in listed if isinstance(listed, list) else []:
        named = entry.get("config_name", "default") if isinstance(entry, dict) else None
        if not isinstance(named, str):
            raise InputError(f"{what}: {file}: configs: each needs a config_name, a text")
        found[named] = entry
    return found


def default_of(declared: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name of the configuration that is declared as the default."""
    marked = [name for name, entry in declared.items() if entry.get("default") is True]
    return marked[0] if len(marked) == 1 else ("default" if "default" in declared else None)


def declared_splits(
    entry: Mapping[str, Any], names: Sequence[str], where: str
) -> tuple[dict[str, list[File]], list[str]]:
    """Files of a declared configuration by split, and the remaining files.

    Raises:
        InputError: `data_files` has another form, or matches no file.
    """
    inside = str(entry.get("data_dir") or ".").strip("/")
    under = [name for name in names if inside in (".", "") or name.startswith(f"{inside}/")]
    if entry.get("data_files") is None:
        splits, _ = resolve(under, where)
    else:
        from datasets.data_files import sanitize_patterns

        with reading(f"{where}: data_files"):
            wanted = sanitize_patterns(entry["data_files"])
        splits = {}
        for split, globs in wanted.items():
            paths = [name for glob in globs for name in matching(str(glob), inside, under)]
            if not paths:
                raise InputError(f"{where}: data_files: split {split!r}: nothing matches {globs}")
            depth = shared(paths)
            splits[split] = [
                File(name, PurePosixPath(name).parts[depth:-1]) for name in dict.fromkeys(paths)
            ]
    used = {file.path for files in splits.values() for file in files}
    return splits, [name for name in names if name not in used]


def matching(glob: str, inside: str, names: Iterable[str]) -> list[str]:
    """Names that match a pattern of `datasets`, relative to a folder."""
    from fsspec.utils import glob_translate

    glob = glob.removeprefix("./")
    pattern = re.compile(glob_translate(glob if inside in (".", "") else f"{inside}/{glob}"))
    return [name for name in names if pattern.match(name)]
