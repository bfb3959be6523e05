"""The program `sweeps`, and `python -m sweeps`.

Signals are handled before anything else is imported: that takes a second, and may be stopped too.
"""

from __future__ import annotations

from sweeps.console import signals


def main() -> None:
    """Run a command."""
    with signals.handled(last=True):
        from sweeps.cli.main import main as program

        program()


if __name__ == "__main__":
    main()
