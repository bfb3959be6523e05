"""A shard that was started again in the middle of a call, and says so: the call is made again."""

from __future__ import annotations

ATTEMPTS = 5
"""How often such a call is made."""


class Forgotten(LookupError):
    """A shard that was started again, and does not know any more what a call builds upon."""


def is_forgotten(error: BaseException) -> bool:
    """Whether that is at the root of an error, however many actors it came through."""
    while not isinstance(error, Forgotten):
        cause = getattr(error, "cause", None)  # Ray's: of an error that was raised in an actor
        if not isinstance(cause, BaseException):
            return False
        error = cause
    return True
