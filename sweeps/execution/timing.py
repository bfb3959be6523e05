"""How long a sweep takes: the estimate in its first line, and the rates that a run leaves."""

from __future__ import annotations

from collections.abc import Collection

from sweeps.console.number_format import count
from sweeps.execution.start_fleet import LOADING, PREPARING
from sweeps.execution.sweep_run import SweepRun
from sweeps.planning.prepared import Prepared
from sweeps.planning.print_plan import arrangement, forwarded
from sweeps.planning.rates import Rates
from sweeps.planning.time_estimate import Measured, estimate, keep_rates
from sweeps.results.folder import Begin, SweepFolder

STARTING = "starting Ray"
"""What the display says in this phase."""

TRIALS, FINISH = "trials of this run", "from the last trial to the report"
"""Phases that are timed, see `Progress.took`."""


def opening(prepared: Prepared, rates: Rates, folder: SweepFolder, begin: Begin) -> str:
    """The first line of a sweep: its trials, where they run, and how long that takes."""
    methods = forwarded(prepared)
    trials = sum(count for count, _, _ in methods.values())
    done = min(trials, len(folder.ledger.done())) if begin.resume or begin.extend else 0
    there = f", {done} of them done" if done else ""
    return (
        f"{prepared.spec.name}: {count(trials, 'trial')} of {count(len(methods), 'method')}{there};"
        f" {arrangement(prepared.plan)}; {estimate(prepared, rates, done)}"
    )


def keep_times(sweep: SweepRun, before: Collection[str]) -> None:
    """Store the rates of a run that has ended, for the estimates of later ones.

    Args:
        sweep: the run.
        before: keys of the trials that it began with.
    """
    if sweep.rates is None:
        return
    progress, inputs = sweep.progress, sweep.prepared.inputs
    took, rows = progress.took, progress.totals.get(f"{inputs.kind}s", 0)
    sweep.rates.keep("prepare", took.get(PREPARING, 0.0), rows, inputs.about)
    new = [e for e in sweep.entries() if e.trial_key not in before and e.status == "done"]
    start = took.get(STARTING, 0.0) + took.get(LOADING, 0.0)
    keep_rates(sweep.prepared, sweep.rates, new, Measured(start, took[TRIALS], took[FINISH]))
