"""Implementation of `sweeps plan`: check a sweep as `run` does, then print the plan."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from actors.files.cache_dir import cache_dir
from sweeps.cluster import ray_connection
from sweeps.cluster.cluster_yaml import of_file
from sweeps.execution.preflight import ready
from sweeps.planning.print_plan import facts, trial_table
from sweeps.planning.rates import Rates
from sweeps.planning.time_estimate import estimate
from sweeps.results.folder import Begin, SweepFolder, check_not_running
from sweeps.spec.sweep import SweepSpec


def show(
    spec: SweepSpec,
    outputs: Path,
    console: Console,
    address: str | None = None,
    file: Path | None = None,
    gpu_memory: float = 0.0,
    begin: Begin | None = None,
) -> None:
    """Check everything that `run` checks, and print placement, memory, trials and work.

    Args:
        spec: what would run.
        outputs: where.
        console: for the plan.
        address: of a running cluster; None: `$RAY_ADDRESS`, else this machine.
        file: a `cluster.yaml` to plan for instead; its hosts are not contacted.
        gpu_memory: of that file's GPUs, in GB, where their labels do not say it; 0: not known.
        begin: how the sweep would begin; None: anew.

    Raises:
        InputError: what `run` would refuse.
    """
    with ExitStack() as stack:
        target = ray_connection.target(address)
        if file is not None:
            resources = of_file(file, gpu_memory)
        elif target:
            stack.enter_context(ray_connection.connected(target, 0))
            resources = ray_connection.of_cluster()
        else:
            resources = ray_connection.this_machine()
        check_not_running(outputs / spec.name)
        begin = begin or Begin()
        prepared = ready(spec, outputs, resources, begin).prepared
    folder, device = SweepFolder(outputs / spec.name), prepared.plan.device
    rates = Rates(cache_dir(), f"{device}-cluster" if file or target else device)
    done = len(folder.ledger.done()) if begin.resume or begin.extend else 0
    for row in [*facts(prepared), ("time", str(estimate(prepared, rates, done)))]:
        console.print("{:<12}{}".format(*row), soft_wrap=True, markup=False)
    console.print(trial_table(prepared))
