"""The one exception a user is meant to see: one line, no traceback."""


class InputError(ValueError):
    """Wrong input: one line naming the file, the field, the value and what is allowed."""
