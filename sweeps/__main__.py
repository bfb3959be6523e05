"""The program `sweeps`, and `python -m sweeps`.

Signals are handled before anything else is imported: that takes a second, and may be stopped too.
"""

from __future__ import annotations

import gc

from sweeps.console import signals


def main() -> None:
    """Run a command.

    The garbage collector skips what exists at the end. Otherwise the interpreter traverses the
    objects of torch, Ray and MLflow several times before it ends, which takes about two seconds.
    """
    try:
        with signals.handled(last=True):
            from sweeps.cli.main import main as program

            program()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
