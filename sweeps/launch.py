"""Launch a sweep as a job of a running cluster: run by `ray submit` on the head, and by the job.

    ray submit cluster.yaml sweeps/launch.py -- SPEC [options of `sweeps run`]

On the head it hands the sweep to Ray as a job and follows its log: a terminal that goes away, or
Ctrl-C, stops only the following. As the job's entrypoint it is `sweeps run`. Two options are its
own: `--wait-nodes N` and `--wait SECONDS`, the nodes to wait for before the sweep is planned.
`ray submit` copies this file alone to the head; what it does is in the project installed there.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Submit a sweep and follow it; in a job: run it."""
    from sweeps.console import signals

    with signals.handled(last=True):
        from sweeps.cli import main as cli
        from sweeps.cli.ray_job import launch

        cli.main(lambda: launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
