"""A task's data as a folder of Parquet files, in the layout of any image data set."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from actors.embedded.tasks import Part


def write(
    folder: Path,
    parts: Mapping[str, Part],
    classnames: Sequence[str],
    templates: Sequence[str],
) -> None:
    """Write `<split>.parquet` for each part and `meta.json` into an existing folder.

    The files carry the `datasets` features `Image()` and `ClassLabel(names)`; images are PNG.
    """
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    features = Features(image=ImageFeature(), label=ClassLabel(names=list(classnames)))
    for split, part in parts.items():
        images = [{"bytes": png(image), "path": None} for image in part.images]
        table = pa.table({"image": images, "label": part.labels}, schema=features.arrow_schema)
        pq.write_table(table, folder / f"{split}.parquet")
    meta = {
        "classnames": list(classnames),
        "templates": list(templates),
        "num_classes": len(classnames),
        **{f"num_{split}": len(part.labels) for split, part in parts.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def read(folder: Path, split: str) -> Part:
    """The images and labels of one split."""
    table = pq.read_table(folder / f"{split}.parquet")
    images = [unpng(row["bytes"]) for row in table["image"].to_pylist()]
    return Part(np.stack(images), table["label"].to_numpy().astype(np.int64))


def png(image: NDArray[np.uint8]) -> bytes:
    """One image [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    # The lightest compression: noise hardly compresses, and level 1 is three times as fast.
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def unpng(data: bytes) -> NDArray[np.uint8]:
    """The RGB image [H, W, 3] of a PNG."""
    return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB"))
