"""The error of a shard that restarted during a call; the caller repeats the call."""

from __future__ import annotations

ATTEMPTS = 5
"""Most attempts of such a call."""


class Forgotten(LookupError):
    """A shard restarted and no longer has state that a call depends on."""


def is_forgotten(error: BaseException) -> bool:
    """Whether `Forgotten` is the root cause of an error, through any number of actors."""
    while not isinstance(error, Forgotten):
        cause = getattr(error, "cause", None)  # set by Ray on errors raised in an actor
        if not isinstance(cause, BaseException):
            return False
        error = cause
    return True
