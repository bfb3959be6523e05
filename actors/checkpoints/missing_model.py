"""What to say of a folder that holds no model: which folder does, and what lies there instead."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from actors.checkpoints.sources import ADAPTER_CONFIG

DEPTH = 4
"""Levels below a folder that are looked at: a hub cache has `models--a--b/snapshots/<hash>`."""

MOST = 2000
"""Folders that are looked at."""

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""What trainers call the folders of their checkpoints."""

OTHERS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf",
)  # fmt: skip
"""Weights in other files than the two that are read."""


def elsewhere(folder: Path, types: Collection[str] = ()) -> str:
    """`; the model is in …: give that folder`, or an empty text if no folder below holds a model.

    Of several, the one of the highest checkpoint, or of a hub cache's main revision, else the
    least deep; models of these types before others.
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
    """Sorts the likeliest first."""
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
    """`; there: model.fp16.safetensors`: other weights in a folder, or nothing."""
    with suppress(OSError):
        found = sorted({path.name for pattern in OTHERS for path in folder.glob(pattern)})
        if found:
            shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if found[4:] else "")
            return f"; there: {shown}"
    return ""
