"""Deaths of worker processes: recognise them in errors of Ray, and report them in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


def is_death(error: BaseException) -> bool:
    """Whether an error reports the death of a process, of a replica or of a shard."""
    while isinstance(error, ray.exceptions.RayTaskError):
        if not isinstance(error.cause, BaseException):
            return False
        error = error.cause
    return isinstance(
        error,
        ray.exceptions.RayActorError
        | ray.exceptions.OutOfMemoryError
        | ray.exceptions.WorkerCrashedError,
    )


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn the death of a Ray Data worker, after Ray's own restarts, into a one-line error.

    Raises:
        OutOfMemory: one died too often.
    """
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None and not is_death(inner):
            inner = inner.__cause__
        if inner is None:
            raise
        from actors.cluster.fatal import OutOfMemory  # late: it brings torch

        raise OutOfMemory(
            f"{what} died again and again, for want of memory most likely: free some, or run with"
            f" fewer cores (`taskset`); Ray says: {' '.join(str(inner).split())[:200]}"
        ) from error
