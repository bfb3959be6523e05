"""A clock that a test turns."""


class Clock:
    """Seconds, as often as they are asked for."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
