"""Errors of a call whose worker process died too often."""

from __future__ import annotations

from fusion.errors import InputError


class OutOfMemory(InputError):
    """A call that needs more memory than there is: gives both sizes and the setting to change."""


class Died(InputError):
    """A call whose worker process died too often, for an unknown reason or with its node."""
