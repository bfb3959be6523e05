"""All trials of a sweep through Ray Tune; references beside them."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune

from actors.experts import REFERENCES, Recipe
from actors.fleet import Client
from actors.recipes import BASE
from actors.transport import fetched
from fusion.registry import METHODS, Adaptive
from sweeps.candidates import planned
from sweeps.canonical import trial_key
from sweeps.folder import SweepFolder
from sweeps.learning import Course
from sweeps.ledger import Entry
from sweeps.progress import Progress
from sweeps.scheduler import Halving
from sweeps.search import MethodSearch
from sweeps.spec import SweepSpec
from sweeps.thin import run_trial
from sweeps.trial import Recorder, finished

TRIAL_MEMORY = 200 * 2**20
"""What a trial's process holds; one that learns, and so imports torch, about twice that. No CPU is
asked for, so that trials queue at the fleet and not for cores that the replicas occupy."""

IN_FLIGHT = 4
"""Trials at a time: enough that each replica has the next call waiting when it ends one."""


class Interrupted(Exception):
    """Ctrl-C: everything finished is kept, and the sweep can be resumed."""


def run_trials(
    spec: SweepSpec,
    context: str,
    experts: Client,
    names: Iterable[str],
    folder: SweepFolder,
    record: Callable[[Entry], None],
    progress: Progress,
    course: Course | None = None,
) -> None:
    """Run what the ledger lacks; every trial that ends is handed to `record` at once.

    Args:
        spec: with all methods that the comparison will have.
        context: what results depend on besides recipes; see `trial_key`.
        experts: the fleet.
        names: the experts' names.
        folder: of the sweep; its ledger says what is finished.
        record: keeps an entry; what it raises ends the sweep.
        progress: gets a phase `trials`.
        course: what methods that learn are given; None: there are none.

    Raises:
        Interrupted: Ctrl-C; the trials in flight were ended.
    """
    done = folder.ledger.done()
    progress.start("trials", sum(planned(spec).values()) + len(REFERENCES))
    progress.advance("trials", len(done))
    # Embeddings and references need no Tune; they keep the replicas busy while it starts.
    warm = [experts.submit("embed", name, "select") for name in (*names, BASE)]
    references = {}
    for method in REFERENCES:
        key = trial_key(method, {}, context)
        if key not in done:
            started = datetime.now(UTC).isoformat()
            ref = experts.submit("evaluate", Recipe(method), "select")
            references[key] = (method, started, ref)
    known = {key: entry.metrics.get(spec.metric) for key, entry in done.items()}
    search = MethodSearch(spec, context, known)
    if search.suggest("probe") != tune.search.Searcher.FINISHED:
        tuned(spec, MethodSearch(spec, context, known), experts, folder, record, course)
    for ref in warm:
        fetched(ref)
    for key, (method, started, ref) in references.items():
        record(finished(key, method, fetched(ref), started))


def tuned(
    spec: SweepSpec,
    search: MethodSearch,
    experts: Client,
    folder: SweepFolder,
    record: Callable[[Entry], None],
    course: Course | None = None,
) -> None:
    """The Tune run; the ledger and not Tune's own state is what a resumed sweep goes by."""
    faults: list[BaseException] = []

    def guarded(entry: Entry) -> None:
        try:
            record(entry)
        except BaseException as fault:
            faults.append(fault)
            raise

    # Failed trials are ours to show, once, at the end; Tune would print each with its traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    learns = [name for name, row in METHODS.items() if isinstance(row, Adaptive)]
    given = None
    if course is not None:
        # Pickled twice: a trial that does not learn opens the outer one only, without torch.
        given = pickle.dumps({"learns": learns, "course": ray.cloudpickle.dumps(course)})
    trainable = tune.with_parameters(
        run_trial, desk=experts.desk, client=ray.cloudpickle.dumps(experts), course=given
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"memory": TRIAL_MEMORY}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=Halving(spec),
            num_samples=-1,
            max_concurrent_trials=IN_FLIGHT,
            reuse_actors=True,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_folder,
        ),
        run_config=tune.RunConfig(
            name=folder.tune.name,
            storage_path=str(folder.path.resolve()),
            callbacks=[Recorder(guarded)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception:
        if faults:
            raise faults[0] from None
        raise
    if search.suggest("probe") != tune.search.Searcher.FINISHED:
        raise Interrupted


def trial_name(trial: Any) -> str:
    """`ties-3f2a…`: what Tune, its dashboard and TensorBoard call a trial."""
    return f"{trial.config['method']}-{trial.config['trial_key']}"


def trial_folder(trial: Any) -> str:
    """Its folder under `tune/`."""
    return trial_name(trial)
