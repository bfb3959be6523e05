"""Parts of every build of an embedded pool: worker processes, and the marker of a complete pool."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from actors.files.atomic import replacing
from actors.files.embedded_pool import MARKER

PROCESSES = 2


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """Two fresh processes; an exception cancels waiting work, an interrupt also running work."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(PROCESSES, mp_context=context)
    try:
        yield executor
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def write_marker(root: Path, made: dict[str, object]) -> None:
    """Write the marker file of a finished pool."""
    with replacing(root / MARKER) as part:
        part.write_text(json.dumps(made, indent=1) + "\n")
