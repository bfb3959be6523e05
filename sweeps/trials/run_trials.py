"""Run all trials of a sweep through Ray Tune, and its references beside them."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune

from actors.artifacts.recipe import BASE, Recipe
from actors.cluster.fatal import Died, OutOfMemory
from actors.cluster.limits import cores, limits
from actors.experts.requests import Embed, Evaluate
from actors.files.fingerprint import Fingerprint
from actors.fleet.client import Client
from actors.fleet.transport import fetched
from fusion.registry import METHODS
from sweeps.console.progress import Progress
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import Entry
from sweeps.spec.candidates import standing
from sweeps.spec.reference_methods import references
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import Context, trial_key
from sweeps.trials.callback import Recorder, died, finished
from sweeps.trials.learn_coding import LearningInputs
from sweeps.trials.scheduler import Halving
from sweeps.trials.searcher import MethodSearch
from sweeps.trials.trainable import run_trial
from sweeps.trials.tuner import fit

TRIAL_MEMORY = 200 * 2**20
"""What a trial's process holds; one that learns, and so imports torch, about twice that. No CPU is
asked for, so that trials queue at the fleet and not for cores that the replicas occupy."""

IN_FLIGHT = 4
"""Trials at a time, at least, where there is memory for them."""

PER_CORE = 8
"""Trials at a time for each core of the driver's machine, at most: a process takes seconds of a
core to start, and all may start there."""

RESTARTS = 3
"""How often a trial runs again whose process died: with a node, say, or for want of memory."""


RUNS = 3
"""How often Tune is begun, for the trials that are left: Tune 2.60 itself fails where Ray kills a
trial's process for want of memory, which it takes for an error that cannot be."""

LOW = "killed due to the node running low on memory"
"""What that error says."""

TELL = 5.0
"""Seconds between requests to the dispatcher for the number of repeated calls."""


def run_trials(
    spec: SweepSpec,
    context: Fingerprint | Context,
    experts: Client,
    names: Iterable[str],
    folder: SweepFolder,
    record: Callable[[Entry], None],
    progress: Progress,
    inputs: LearningInputs | None = None,
) -> None:
    """Run all trials that the ledger lacks; each is passed to `record` when it ends.

    Args:
        spec: with all methods that the comparison will have.
        context: what results depend on besides recipes; see `trial_key`.
        experts: the fleet.
        names: the experts' names.
        folder: of the sweep; its ledger says what is finished.
        record: keeps an entry; what it raises ends the sweep.
        progress: gets a phase `trials`.
        inputs: of learning trials; None: no method learns.
    """
    falls = Falls(experts, progress.say)

    def kept(entry: Entry) -> None:
        record(entry)
        falls.look()

    done = folder.ledger.done()
    ready, total = standing(spec, context, {key: each.method for key, each in done.items()})
    progress.start("trials", total)
    progress.advance("trials", ready)
    # Embeddings and references need no Tune; they keep the replicas busy while it starts.
    warm = [experts.submit(Embed(name, "select")) for name in (*names, BASE)]
    asked = {}
    for method in references(spec):
        key = trial_key(method, {}, context)
        if key not in done:
            started = datetime.now(UTC).isoformat()
            payer = experts.named(key)
            ref = payer.submit(Evaluate(Recipe(method), "select"))
            asked[key] = (method, started, payer, ref)
    search_all(spec, context, experts, folder, kept, progress, inputs)
    for ref in warm:
        with suppress(OutOfMemory, Died):  # whoever needs the embedding says so, and fails
            fetched(ref)
    for key, (method, started, payer, ref) in asked.items():
        try:
            entry = finished(key, method, fetched(ref), started)
        except (OutOfMemory, Died) as error:
            config = {"trial_key": key, "method": method, "params": {}}
            kept(died(config, f"{type(error).__name__}: {error}"))
            continue
        kept(replace(entry, busy_s=payer.spent()))


def search_all(
    spec: SweepSpec,
    context: Fingerprint | Context,
    experts: Client,
    folder: SweepFolder,
    record: Callable[[Entry], None],
    progress: Progress,
    inputs: LearningInputs | None,
) -> None:
    """Run Tune until the search has ended: once, unless Ray kills trial processes.

    Raises:
        OutOfMemory: it does so `RUNS` times.
    """
    ended = folder.ledger.done()
    for begun in range(1, RUNS + 1):
        known = {key: entry.metrics.get(spec.metric) for key, entry in ended.items()}
        search = MethodSearch(spec, context, known, told=experts.dispatcher.expect.remote)
        if not search.left():
            return
        try:
            return tuned(spec, search, experts, folder, record, inputs)
        except RuntimeError as error:
            if LOW not in str(error):
                raise
            if begun == RUNS:
                raise OutOfMemory(
                    f"trials: Ray killed their processes for want of memory {RUNS} times; free"
                    " some, or set placement.replicas lower; --resume goes on from here"
                ) from error
        progress.say("Ray killed processes of trials for want of memory: they begin again")
        ended = {entry.trial_key: entry for entry in folder.ledger}  # failed ones of this run, too


@dataclass
class Falls:
    """Report deaths of replica processes, and the number of calls that were repeated."""

    experts: Client
    say: Callable[[str], None]
    known: int = 0
    due: float = 0.0

    def look(self) -> None:
        """Ask the dispatcher, at intervals."""
        if time.monotonic() < self.due:
            return
        found = self.experts.fallen()
        self.due = time.monotonic() + TELL
        if found > self.known:
            self.known = found
            self.say(f"processes of replicas died: {found} call(s) made again so far")


def tuned(
    spec: SweepSpec,
    search: MethodSearch,
    experts: Client,
    folder: SweepFolder,
    record: Callable[[Entry], None],
    inputs: LearningInputs | None = None,
) -> None:
    """Run Tune; a resumed sweep goes by the ledger, not by Tune's state."""
    faults: list[BaseException] = []

    def guarded(entry: Entry) -> None:
        try:
            record(entry)
        except BaseException as fault:
            faults.append(fault)
            raise

    # Failed trials are ours to show, once, at the end; Tune would print each with its traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    learns = [name for name, row in METHODS.items() if row.learns]
    given = None
    if inputs is not None:
        # Pickled twice: a trial that does not learn opens the outer one only, without torch.
        given = pickle.dumps({"learns": learns, "inputs": ray.cloudpickle.dumps(inputs)})
    trainable = tune.with_parameters(
        run_trial,
        dispatcher=experts.dispatcher,
        client=ray.cloudpickle.dumps(experts),
        inputs=given,
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"memory": TRIAL_MEMORY}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=Halving(spec),
            num_samples=-1,
            max_concurrent_trials=in_flight(
                experts.replicas,
                not spec.methods.keys().isdisjoint(learns),
                limits().memory,
                cores(),
            ),
            reuse_actors=True,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name,
            storage_path=str(folder.path.resolve()),
            callbacks=[Recorder(guarded)],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    fit(tuner, faults)
    if search.left():  # Tune ends quietly on SIGUSR1
        raise KeyboardInterrupt


def in_flight(replicas: int, learning: bool, memory: int, cores: int) -> int:
    """Number of concurrent trials: two for each replica, so that its next call is ready when one
    ends.

    The driver's machine must be able to hold all, in half of its free memory: what they do to it,
    driver and replicas suffer. One there is always.

    Args:
        replicas: of the fleet.
        learning: whether there may be trials that learn, which take twice the memory.
        memory: free bytes of the driver's machine.
        cores: of it.

    >>> [in_flight(n, False, 2**36, 16) for n in (1, 16, 64)], in_flight(1, False, 2**30, 16)
    ([4, 32, 128], 2)
    """
    each = TRIAL_MEMORY * (2 if learning else 1)
    wanted = max(IN_FLIGHT, min(2 * replicas, PER_CORE * cores))
    return max(1, min(wanted, memory // 2 // each))


def trial_name(trial: Any) -> str:
    """Name of a trial and its folder in Tune, its dashboard and TensorBoard: `ties-3f2a…`."""
    return f"{trial.config['method']}-{trial.config['trial_key']}"
