"""Real labelled texts for `benchmarks.sweeps.real_text`: banking77, clinc_domains, three from code.

    python -m benchmarks.sweeps.text_sets DATA OUT

DATA holds banking77/ and clinc_domains/, each with train.parquet and test.parquet. OUT gets a
folder a task with train.parquet, validation.parquet and test.parquet, of columns text and label.

Three tasks are read off the source files of this project's dependencies; nothing is imported or
downloaded, and the labels are facts about the files:

* docstring_package: the first paragraph of a docstring -> the package that it is from. Paragraphs
  that name one of the packages are left out.
* exception_type: the message of a `raise` statement -> the type that is raised. Values that a
  message is filled with are written `{}`.
* docstring_kind: the first paragraph of a docstring, of other packages -> class, function, module.

All tasks: classes of equal size within a split, classes with too few texts left out; no text twice
in a task, ignoring case, digits and blanks; texts with two labels are left out. A source file's
texts are all in one split. Order and choice depend on hashes of names and texts, so the same files
give the same rows.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

SPLITS = ("train", "validation", "test")

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sqlalchemy",
            "sympy", "torch", "transformers")  # fmt: skip
"""Classes of docstring_package."""

OTHERS = ("aiohttp", "alembic", "datasets", "fsspec", "huggingface_hub", "hypothesis", "mlflow",
          "mypy", "optuna", "peft", "pip", "pydantic", "pygments", "ray", "rich", "setuptools",
          "starlette", "werkzeug")  # fmt: skip
"""Where docstring_kind is from."""

NAMED = re.compile(
    r"matplotlib|pyplot|networkx|numpy|pandas|scipy|sklearn|scikit|sqlalchemy|sympy|torch"
    r"|transformers|hugging|\b(?:np|pd|plt|nx|sa|hf)\.",
    re.IGNORECASE,
)
"""What gives a package away."""

EXCEPTIONS = ("AttributeError", "ImportError", "KeyError", "NotImplementedError", "RuntimeError",
              "TypeError", "ValueError")  # fmt: skip

KINDS = {ast.Module: "module", ast.ClassDef: "class", ast.FunctionDef: "function"}

WORDS = (4, 30)
"""Fewest words of a text, and how many are kept."""

FILE_ROWS = 3
"""Rows of one source file and class, at most."""

PACKAGE_FILES = 250
"""Source files of a package that are read, at most."""


@dataclass(frozen=True)
class Text:
    """A labelled text, the split that it may be in, and its source file, if it has one."""

    text: str
    label: str
    split: str
    file: str = ""


@dataclass(frozen=True)
class Sizes:
    """Rows of each class."""

    train: int
    validation: int
    test: int


SIZES = {
    "banking77": Sizes(20, 5, 10),
    "clinc_domains": Sizes(60, 40, 60),
    "docstring_package": Sizes(120, 30, 50),
    "exception_type": Sizes(250, 50, 80),
    "docstring_kind": Sizes(200, 50, 100),
}


def number(*words: str) -> int:
    """A hash of texts that is the same everywhere."""
    return int(hashlib.sha256("\0".join(words).encode()).hexdigest()[:12], 16)


def plain(text: str) -> str:
    """A text as it is compared with others: no case, blanks as one, digits as one."""
    return re.sub(r"\d+", "0", " ".join(text.casefold().split()))


def source_split(path: str) -> str:
    """The split of a source file: 64 % train, 16 % validation, 20 % test."""
    place = number("split", path) % 25
    return SPLITS[(place >= 16) + (place >= 20)]


def source_files(packages: Iterable[str]) -> Iterator[tuple[str, str, Path]]:
    """(package, name, path) of Python files that are no tests, in the order of a hash."""
    found = []
    for package in packages:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = Path(place)
            names = (path.relative_to(root).as_posix() for path in root.rglob("*.py"))
            kept = sorted(
                (name for name in names if "test" not in name and "_vendor" not in name),
                key=lambda name: number(package, name),
            )
            found += [(package, name, root / name) for name in kept[:PACKAGE_FILES]]
    yield from sorted(found, key=lambda each: number(*each[:2]))


def parsed(path: Path) -> ast.Module | None:
    """A source file; None: it is for another Python."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def cut(text: str) -> str:
    """The first words of a text, with single blanks."""
    return " ".join(text.split()[: WORDS[1]])


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(kind, first paragraph) of a file's docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            found = ast.get_docstring(node)
            if found:
                yield KINDS[type(node)], cut(re.split(r"\n\s*\n", found, maxsplit=1)[0])


def messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(type, message) of a file's `raise` statements whose message is written there."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[first, *_])):
                if name in EXCEPTIONS:
                    yield name, cut(written(first))


def written(node: ast.expr) -> str:
    """The text of a literal, with `{}` for what it is filled with; empty: not a literal."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%\(?\w*\)?[sdr]|\{[^{}]*\}", "{}", text)
        case ast.JoinedStr(values=parts):
            return "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)
        case ast.BinOp(left=left, op=ast.Mod()):
            return written(left)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return written(left) + written(right)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return written(value)
    return ""


def docstring_package() -> Iterator[Text]:
    """Docstrings that do not name their package."""
    for package, name, path in source_files(PACKAGES):
        tree, file = parsed(path), f"{package}/{name}"
        for _, text in docstrings(tree) if tree else ():
            if not NAMED.search(text):
                yield Text(text, package, source_split(file), file)


def docstring_kind() -> Iterator[Text]:
    """Docstrings of other packages, by what they describe."""
    for package, name, path in source_files(OTHERS):
        tree, file = parsed(path), f"{package}/{name}"
        for kind, text in docstrings(tree) if tree else ():
            yield Text(text, kind, source_split(file), file)


def exception_type() -> Iterator[Text]:
    """Messages of exceptions, from all packages."""
    for package, name, path in source_files((*PACKAGES, *OTHERS)):
        tree, file = parsed(path), f"{package}/{name}"
        for kind, text in messages(tree) if tree else ():
            yield Text(text, kind, source_split(file), file)


def published(folder: Path) -> Iterator[Text]:
    """A data set of DATA: train and validation are from its train.parquet."""
    import datasets

    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(folder / f"{split}.parquet"), keep_in_memory=True)
        names = rows.features["label"].names
        pairs = [(row["text"], names[row["label"]]) for row in rows]
        for text, label in sorted(pairs, key=lambda pair: number(*pair)):
            held_out = split == "train" and number("validation", text) % 4 == 0
            yield Text(" ".join(text.split()), label, "validation" if held_out else split)


def chosen(texts: Iterable[Text], sizes: Sizes) -> dict[str, list[Text]]:
    """Rows of each split, classes of equal size, no text twice, none with two labels.

    Classes with too few texts in a split are left out.

    Raises:
        SystemExit: fewer than two classes are left.
    """
    groups: dict[tuple[str, str], list[Text]] = defaultdict(list)
    for each in unambiguous(texts):
        groups[each.split, each.label].append(each)
    labels = sorted({label for _, label in groups})
    full = [
        label
        for label in labels
        if all(len(groups[split, label]) >= getattr(sizes, split) for split in SPLITS)
    ]
    if len(full) < 2:
        have = {f"{split}/{label}": len(found) for (split, label), found in groups.items()}
        raise SystemExit(f"fewer than two classes of {sizes}: {have}")
    return {
        split: sorted(
            (each for label in full for each in groups[split, label][: getattr(sizes, split)]),
            key=lambda each: number("order", each.text),
        )
        for split in SPLITS
    }


def unambiguous(texts: Iterable[Text]) -> list[Text]:
    """Texts without repetitions and without those of two labels, a few of each source file."""
    labels: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Text] = {}
    of_file: Counter[tuple[str, str]] = Counter()
    for each in texts:
        key = plain(each.text)
        if each.file and len(each.text.split()) < WORDS[0]:
            continue
        labels[key].add(each.label)
        if key in first or (each.file and of_file[each.file, each.label] == FILE_ROWS):
            continue
        of_file[each.file, each.label] += 1
        first[key] = each
    return [each for key, each in first.items() if len(labels[key]) == 1]


def write(folder: Path, splits: Mapping[str, list[Text]]) -> None:
    """A parquet file a split, with class names."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    names = sorted({each.label for rows in splits.values() for each in rows})
    kinds = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    for split, rows in splits.items():
        content = {"text": [r.text for r in rows], "label": [names.index(r.label) for r in rows]}
        datasets.Dataset.from_dict(content, features=kinds).to_parquet(
            str(folder / f"{split}.parquet")
        )


def make(data: Path, out: Path) -> None:
    """All five, as far as they are missing."""
    made = {
        "banking77": lambda: published(data / "banking77"),
        "clinc_domains": lambda: published(data / "clinc_domains"),
        "docstring_package": docstring_package,
        "exception_type": exception_type,
        "docstring_kind": docstring_kind,
    }
    for task, texts in made.items():
        if not (out / task / "test.parquet").exists():
            rows = chosen(texts(), SIZES[task])
            write(out / task, rows)
            counts = ", ".join(f"{split} {len(found)}" for split, found in rows.items())
            classes = len({each.label for each in rows["train"]})
            print(f"{task}: {classes} classes; rows: {counts}", flush=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
