"""Error texts for a folder without a model: the folder that has one, or the files found instead."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from actors.checkpoints.sources import ADAPTER_CONFIG

DEPTH = 4
"""Levels searched below a folder: a hub cache has `models--a--b/snapshots/<hash>`."""

MOST = 2000
"""Most folders searched."""

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Names of the checkpoint folders of trainers."""

OTHERS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf",
)  # fmt: skip
"""Weight files of other formats than the two that are read."""


def elsewhere(folder: Path, types: Collection[str] = ()) -> str:
    """`; the model is in …: give that folder`, or an empty text if no folder below holds a model.

    Of several, the highest checkpoint, or a hub cache's main revision, or the least deep folder;
    models of these types come first.
    """
    with suppress(OSError):
        if found := sorted(models_below(folder), key=lambda each: rank(each, folder, types)):
            more = f" (and {len(found) - 1} more below it)" if found[1:] else ""
            return f"; did you mean {found[0]}{more}?"
    return ""


def models_below(folder: Path) -> Iterator[Path]:
    """Folders that hold a model or an adapter, breadth first."""
    level, looked = [folder], 0
    for _ in range(DEPTH):
        inner: list[Path] = []
        for each in level:
            with suppress(OSError):
                inner += sorted(path for path in each.iterdir() if path.is_dir())
        for path in inner:
            if (path / ADAPTER_CONFIG).is_file() or (path / "config.json").is_file():
                yield path
        looked += len(inner)
        if looked > MOST:
            return
        level = inner


def rank(model: Path, folder: Path, types: Collection[str]) -> tuple[bool, bool, int, int, str]:
    """Sort key: the likeliest model first."""
    number = CHECKPOINT.fullmatch(model.name)
    main = False
    if model.parent.name == "snapshots":
        with suppress(OSError, ValueError):
            main = (model.parents[1] / "refs" / "main").read_text().strip() == model.name
    depth = len(model.relative_to(folder).parts)
    return not is_of(model, types), not main, depth, -int(number[1]) if number else 0, str(model)


def is_of(model: Path, types: Collection[str]) -> bool:
    """Whether a folder's configuration is of one of these model types, or of an adapter."""
    if (model / ADAPTER_CONFIG).is_file():
        return True
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        with (model / "config.json").open("rb") as file:
            content = json.loads(file.read(1 << 20))
        return content.get("model_type") in types
    return False


def instead(folder: Path) -> str:
    """`; there: model.fp16.safetensors`: other weight files in a folder, or an empty text."""
    with suppress(OSError):
        found = sorted({path.name for pattern in OTHERS for path in folder.glob(pattern)})
        if found:
            shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if found[4:] else "")
            return f"; there: {shown}"
    return ""
