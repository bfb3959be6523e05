"""Matrix files [N, D] of features or embeddings: memory-mapped Arrow, read without a copy.

Two columns: `id`, the sample's row in the pixel file, and `values`, its D numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.files.arrow import Column, checked, flat, seal, skeleton, tensor_of, write_all
from actors.files.atomic import replacing
from actors.files.checksums import Damaged, again
from fusion.errors import InputError, one_line

if TYPE_CHECKING:  # start-up time: processes that only decode rows need no torch
    from torch import Tensor


def write_matrix(
    path: Path, ids: NDArray[np.int64], width: int, blocks: Iterable[NDArray[np.float32]]
) -> None:
    """Write a matrix block by block; the file appears complete or not at all.

    Args:
        path: the file.
        ids: int64 [N]: each sample's row in the pixel file.
        width: D.
        blocks: consecutive rows, float32 [n, D].

    Raises:
        InputError: no disk space, no quota or no permission.
        ValueError: a block of another width, or not N rows in all.
    """
    columns = [Column("id", pa.int64()), Column("values", pa.float32(), width)]
    with replacing(path) as part, part.open("w+b", buffering=0) as file:
        at = skeleton(file, part, len(ids), columns, {})
        write_all(file, np.ascontiguousarray(ids, dtype=np.int64), at["id"])
        end, left = at["values"], len(ids)
        for block in blocks:
            left -= len(block)
            if block.shape[1:] != (width,) or left < 0:
                raise ValueError(f"{path}: {list(block.shape)} into {len(ids)} rows of {width}")
            end = write_all(file, np.ascontiguousarray(block, dtype=np.float32), end)
        if left:
            raise ValueError(f"{path}: {left} of {len(ids)} rows missing")
        seal(file, part)


def open_matrix(path: Path, what: str) -> Tensor:
    """The values float32 [N, D], memory-mapped, read-only by convention.

    Args:
        path: the file.
        what: what the file should hold, for the message.

    Raises:
        InputError: missing or damaged.
    """
    try:
        return tensor_of(mapped(path)[1])
    except (OSError, InputError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(f"{path}: not a file of {what}: {reason}; delete it") from None


def matrix_shape(path: Path) -> tuple[int, int] | None:
    """(N, D), or None if the file is missing or damaged; damage is logged."""
    try:
        rows, width = mapped(path)[1].shape
    except OSError:
        return None
    except Damaged as error:
        again(path, error)
        return None
    return rows, width


def mapped(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and values of a file.

    Raises:
        OSError: no such file.
        Damaged: not a matrix file, or not what was written.
    """
    schema, batch = checked(path)
    kinds = {field.name: field.type for field in schema}
    listed: Any = kinds.get("values")
    number = pa.types.is_fixed_size_list(listed) and listed.value_type == pa.float32()
    if not number or kinds.get("id") != pa.int64():
        raise Damaged(f"columns {', '.join(map(str, schema))}; lists of floats needed")
    values: NDArray[np.float32] = flat(batch, "values", np.float32)
    return flat(batch, "id", np.int64), values.reshape(batch.num_rows, listed.list_size)
