"""Rows prepared in parallel: one function over chunks of rows, by Ray Data or in this process.

Ray is loaded when it is used: processes that only prepare rows start sooner without it.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

RETRIES = 2
"""How often a chunk is prepared again whose worker's process died."""


def mapped(
    function: Callable[..., pa.Table],
    chunks: Sequence[Any],
    arguments: Mapping[str, Any],
    files: Iterable[str],
    who: str,
    *,
    here: bool = False,
    ordered: bool = False,
) -> Iterator[pa.Table]:
    """`function(chunk, **arguments)` of each chunk; tables, which may be cut or joined on the way.

    All nodes that see the files work where a Ray is initialised; else this process does.

    Args:
        function: of a module that workers can import.
        chunks: anything that can be pickled.
        arguments: sent to each worker once.
        files: local files that are read.
        who: what a worker is, for the message where its process dies.
        here: to be done in this process in any case.
        ordered: results in the order of the chunks; else as they come.
    """
    import ray

    from actors.cluster.file_visibility import workplaces

    places = None if here or not ray.is_initialized() else workplaces(files)
    if places is None:
        yield from (function(chunk, **arguments) for chunk in chunks)
        return
    import ray.data

    from actors.cluster.worker_deaths import reported

    # Chunks are pickled, one a row, so that each worker receives only its own.
    items = [{"chunk": pickle.dumps(chunk)} for chunk in chunks]
    with quiet(), reported(who):
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        with warnings.catch_warnings():  # no argument that Ray keeps has the number of retries
            warnings.filterwarnings("ignore", message="`ray_remote_args")
            dataset = dataset.map_batches(
                one_chunk,
                batch_size=1,
                batch_format="pyarrow",
                fn_kwargs={"function": function, "arguments": dict(arguments)},
                ray_remote_args_fn=lambda: {"max_retries": RETRIES},
            )
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.label_selector = places or None
        dataset.context.execution_options.preserve_order = ordered
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def one_chunk(
    batch: pa.Table, function: Callable[..., pa.Table], arguments: Mapping[str, Any]
) -> pa.Table:
    """One pickled chunk, prepared: what runs in Ray Data's workers."""
    return function(pickle.loads(batch.column("chunk")[0].as_py()), **arguments)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray Data's progress messages off the terminal; they still go to its log files."""
    consoles = [h for h in logging.getLogger("ray.data").handlers if h.name == "console"]
    levels = [handler.level for handler in consoles]
    try:
        for handler in consoles:
            handler.setLevel(logging.ERROR)
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
