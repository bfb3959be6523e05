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
from sweeps.spec.candidates import trial_counts
from sweeps.spec.reference_methods import references
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.trial_key import Context, trial_key
from sweeps.trials.callback import RESTARTS, Recorder, died, finished
from sweeps.trials.learn_coding import LearningInputs
from sweeps.trials.scheduler import Halving
from sweeps.trials.searcher import MethodSearch
from sweeps.trials.tensorboard_files import EventFiles
from sweeps.trials.trainable import run_trial
from sweeps.trials.tuner import fit

TRIAL_MEMORY = 200 * 2**20
"""Memory of a trial's process; one that learns imports torch and needs about twice that. Trials
reserve no CPU, so that they queue at the fleet and not for cores that the replicas occupy."""

IN_FLIGHT = 2
"""Least number of concurrent trials, if there is memory for them."""

PER_CORE = 8
"""Most concurrent trials for each core of the driver's machine: a process takes seconds of a core
to start, and all may start there."""

RUNS = 3
"""Starts of Tune for the remaining trials: Tune 2.60 itself fails when Ray kills a trial's process
for lack of memory, because it takes this for an impossible error."""

LOW_MEMORY = "killed due to the node running low on memory"
"""Text of that error."""

POLL = 5.0
"""Seconds between requests to the dispatcher for the number of repeated calls."""


@dataclass(frozen=True)
class TrialSetup:
    """What the trials of a sweep need."""

    spec: SweepSpec
    """The sweep, with all methods that the comparison lists."""
    context: Fingerprint | Context
    """Everything but recipes that results depend on; see `trial_key`."""
    experts: Client
    """Client of the fleet."""
    folder: SweepFolder
    """The sweep's folder; its ledger holds the finished trials."""
    progress: Progress
    """Shows the phase `trials`."""
    inputs: LearningInputs | None = None
    """Inputs of trials that learn; None: no method learns."""


def run_trials(setup: TrialSetup, names: Iterable[str], record: Callable[[Entry], None]) -> None:
    """Run all trials that the ledger lacks.

    Args:
        setup: the sweep, its fleet and its folder.
        names: names of the experts, whose embeddings are computed first.
        record: called with each entry when its trial ends; an exception from it ends the sweep.
    """
    spec, experts, progress = setup.spec, setup.experts, setup.progress
    repeated = RepeatedCalls(experts, progress.say)

    def kept(entry: Entry) -> None:
        record(entry)
        repeated.poll()

    done = setup.folder.ledger.done()
    ready, total = trial_counts(spec, setup.context, {key: e.method for key, e in done.items()})
    progress.start("trials", total)
    progress.advance("trials", ready)
    # Embeddings and references need no Tune; they keep the replicas busy while it starts.
    warm = [experts.submit(Embed(name, "select")) for name in (*names, BASE)]
    submitted = {}
    for method in references(spec):
        key = trial_key(method, {}, setup.context)
        if key not in done:
            started = datetime.now(UTC).isoformat()
            payer = experts.named(key)
            ref = payer.submit(Evaluate(Recipe(method), "select"))
            submitted[key] = (method, started, payer, ref)
    search_all(setup, kept)
    for ref in warm:
        with suppress(OutOfMemory, Died):  # a trial that needs the embedding reports the error
            fetched(ref)
    for key, (method, started, payer, ref) in submitted.items():
        try:
            entry = finished(key, method, fetched(ref), started)
        except (OutOfMemory, Died) as error:
            config = {"trial_key": key, "method": method, "params": {}}
            kept(died(config, f"{type(error).__name__}: {error}"))
            continue
        kept(replace(entry, busy_s=payer.busy_seconds()))


def search_all(setup: TrialSetup, record: Callable[[Entry], None]) -> None:
    """Run Tune until the search has ended: once, unless Ray kills trial processes.

    Raises:
        OutOfMemory: Ray killed them `RUNS` times.
    """
    spec, ledger = setup.spec, setup.folder.ledger
    ended = ledger.done()
    for begun in range(1, RUNS + 1):
        known = {key: entry.metrics.get(spec.metric) for key, entry in ended.items()}
        expect = setup.experts.dispatcher.expect.remote
        search = MethodSearch(spec, setup.context, known, on_suggest=expect)
        if not search.left():
            return
        try:
            return tuned(setup, search, record)
        except RuntimeError as error:
            if LOW_MEMORY not in str(error):
                raise
            if begun == RUNS:
                raise OutOfMemory(
                    f"trials: Ray killed their processes for want of memory {RUNS} times; free"
                    " some, or set placement.replicas lower; --resume goes on from here"
                ) from error
        setup.progress.say("Ray killed processes of trials for want of memory: they begin again")
        ended = {entry.trial_key: entry for entry in ledger}  # failed ones of this run, too


@dataclass
class RepeatedCalls:
    """Report deaths of replica processes, and the number of calls that were repeated."""

    experts: Client
    say: Callable[[str], None]
    known: int = 0
    due: float = 0.0

    def poll(self) -> None:
        """Query the dispatcher, at most every `POLL` seconds, and report new repetitions."""
        if time.monotonic() < self.due:
            return
        found = self.experts.repeated_calls()
        self.due = time.monotonic() + POLL
        if found > self.known:
            self.known = found
            self.say(f"processes of replicas died: {found} call(s) made again so far")


def tuned(setup: TrialSetup, search: MethodSearch, record: Callable[[Entry], None]) -> None:
    """Run Tune; a resumed sweep continues from the ledger, not from Tune's state."""
    spec, experts, folder, inputs = setup.spec, setup.experts, setup.folder, setup.inputs
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
            callbacks=[Recorder(guarded, search.repeat), EventFiles()],
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            verbose=0,
        ),
    )
    fit(tuner, faults)
    if search.left():  # Tune ends quietly on SIGUSR1
        raise KeyboardInterrupt


def in_flight(replicas: int, learning: bool, memory: int, cores: int) -> int:
    """Number of concurrent trials: two for each replica, so that its next call is ready in time.

    All must fit in half of the free memory of the driver's machine, since the driver and replicas
    run there too. There is always at least one.

    Args:
        replicas: number of replicas of the fleet.
        learning: whether there may be trials that learn, which take twice the memory.
        memory: free bytes of the driver's machine.
        cores: number of its cores.

    >>> [in_flight(n, False, 2**36, 16) for n in (1, 16, 64)], in_flight(1, False, 2**30, 16)
    ([2, 32, 128], 2)
    """
    each = TRIAL_MEMORY * (2 if learning else 1)
    wanted = max(IN_FLIGHT, min(2 * replicas, PER_CORE * cores))
    return max(1, min(wanted, memory // 2 // each))


def trial_name(trial: Any) -> str:
    """Name of a trial and its folder in Tune, its dashboard and TensorBoard: `ties-3f2a…`."""
    return f"{trial.config['method']}-{trial.config['trial_key']}"
