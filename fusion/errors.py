"""The exception a user is meant to see: one line, no traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Wrong input: one line naming the file, the field, the value and what is allowed."""


class Vanished(InputError):
    """A member of the pool whose file is gone, or no longer what it was when it was opened.

    Who can do without it goes on: a greedy soup leaves the ingredient out and says so
    (`sweeps.selecting`). To all others it is an `InputError` like any.
    """

    def __init__(self, member: str, said: str) -> None:
        """`member`: its name in the pool; `said`: the whole line, with member, file and reason."""
        super().__init__(said)
        self.member = member

    def __reduce__(self) -> tuple[type[Vanished], tuple[str, str]]:
        """Errors cross processes pickled, and their member with them."""
        return type(self), (self.member, str(self))
