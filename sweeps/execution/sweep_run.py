"""A sweep that has started: what each phase of it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version

from actors.data.task_rows import TaskData
from actors.fleet.client import Client
from sweeps.console.progress import Progress
from sweeps.planning.prepared import Prepared
from sweeps.planning.rates import Rates
from sweeps.results.folder import Identity, SweepFolder
from sweeps.results.ledger import Entry
from sweeps.results.rows.winners import counted
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import Context
from sweeps.storage.mirror import Mirror
from sweeps.tracking.tracker import Tracker
from sweeps.trials.learn_coding import LearningInputs


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, from loaded experts to the comparison."""

    prepared: Prepared
    folder: SweepFolder
    identity: Identity
    experts: Client
    """Client of the fleet, whose replicas have loaded the experts."""
    tracker: Tracker
    mirror: Mirror
    progress: Progress
    inputs: LearningInputs | None = None
    """What trials of learning methods read; None: the sweep has no such method."""
    command: str = ""
    """Command line that reproduces the sweep; the report shows it."""
    data: Mapping[str, TaskData] = field(default_factory=dict)
    """Task -> its rows; samples of them are shown in the report."""
    rates: Rates | None = None
    """Rates of this machine, which get those of the run; None: they are not kept."""

    @property
    def spec(self) -> SweepSpec:
        """The sweep file, with all methods that the comparison lists."""
        return self.prepared.spec

    @property
    def say(self) -> Callable[[str], None]:
        """Print a line above the progress bars."""
        return self.progress.say

    @cached_property
    def context(self) -> Context:
        """What every trial's result depends on besides its recipe."""
        return self.prepared.context()

    def entries(self) -> list[Entry]:
        """Finished trials that the comparison counts."""
        return counted(self.folder.ledger, self.spec)


def tags_of(prepared: Prepared, identity: Identity) -> dict[str, str]:
    """Tags of the sweep's parent run."""
    spec = prepared.spec
    chosen_on_report = spec.splits.select == spec.splits.report
    return {
        "spec_hash": identity.spec_hash,
        "select": spec.splits.select,
        "report": spec.splits.report,
        "selected_on_report": str(chosen_on_report).lower(),
        "base": spec.pool.base,
        "experts": ",".join(spec.pool.experts),
        "code": version("fusion-sweeps"),
    }
