"""Trials on Tune: a failure is recorded and the sweep goes on; a fault of the ledger ends it."""

import json

import numpy as np
import pytest
import ray
from rich.console import Console

from actors.cluster.fatal import OutOfMemory
from actors.experts.evaluation import Evaluation, TaskScore
from actors.fleet.client import Client
from actors.fleet.dispatcher import Dispatcher, Slot
from actors.fleet.restarts import StateReporter
from fusion.errors import InputError
from sweeps.console.progress import Progress
from sweeps.results.folder import SweepFolder
from sweeps.spec.sweep import validate
from sweeps.trials import run_trials as trials
from sweeps.trials.run_trials import IN_FLIGHT, TrialSetup, in_flight, run_trials

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(600),  # a busy machine starts processes slowly
]


class Fake(StateReporter):
    """A replica whose accuracy is λ; it fails for some λ and runs out of memory for other work."""

    def __init__(self, log):
        self.log = str(log)

    def evaluate(self, recipe, role):
        with open(self.log, "a") as file:
            file.write(json.dumps([recipe.method, dict(recipe.params)]) + "\n")
        scale = recipe.params.get("scale", 0.0)
        if scale == 0.5:
            raise RuntimeError("no luck with a half")
        if scale == 0.7 or recipe.method == "experts":
            raise OutOfMemory("evaluate: out of memory, 2 times in a row")
        hits = np.arange(10) < round(10 * scale)
        return Evaluation({"x": TaskScore(hits, 1.0)}, 0.01, 1)

    def embed(self, expert, role):
        raise OutOfMemory("embed: out of memory, 2 times in a row")

    def call(self, request):
        return request.run(self)


def spec_of(*scales):
    return validate(
        {
            "name": "t",
            "pool": {"base": "b", "experts": {"x": "e"}},
            "tasks": {"x": {"dataset": "d"}},
            "methods": {"task_arithmetic": {"scale": {"grid": [*scales]}}},
        },
        "t.yaml",
    )


def run(spec, folder, log, record=None):
    with Progress(Console(quiet=True)) as progress:
        keep = record or folder.ledger.add
        replica = ray.remote(Fake).options(num_cpus=0).remote(log)
        group = ray.util.placement_group([{"CPU": 0.1}])
        slots = ray.cloudpickle.dumps([Slot(0, replica, group)])
        dispatcher = ray.remote(Dispatcher).options(num_cpus=0).remote(slots, 60.0)
        try:
            setup = TrialSetup(spec, "ctx", Client(dispatcher), folder, progress)
            run_trials(setup, ["x"], keep)
        finally:
            ray.util.remove_placement_group(group)


def calls(log):
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sorted(params.get("scale", -1) for _, params in lines)


def test_failed_trials_are_recorded_and_only_they_run_again(tmp_path):
    """One trial raises; one, a reference model and an embedding run out of memory."""
    spec = spec_of(0.1, 0.5, 0.7, 0.9)
    folder, log = SweepFolder(tmp_path / "t"), tmp_path / "log"
    run(spec, folder, log)
    found = {entry.params.get("scale", entry.method): entry for entry in folder.ledger}
    assert {name: entry.status for name, entry in found.items()} == {
        "pretrained": "done",
        "experts": "failed",
        0.1: "done",
        0.5: "failed",
        0.7: "failed",
        0.9: "done",
    }
    assert "no luck with a half" in found[0.5].error
    short = "OutOfMemory: evaluate: out of memory, 2 times in a row"
    assert found[0.7].error == found["experts"].error == short
    assert found[0.9].metrics["acc/mean"] == 0.9
    assert calls(log) == [-1, -1, 0.1, 0.5, 0.7, 0.9]  # with pretrained and experts
    log.unlink()
    folder.ledger.clear_failed()
    run(spec, folder, log)
    assert calls(log) == [-1, 0.5, 0.7]


@pytest.mark.slow
def test_a_ledger_that_cannot_be_written_ends_the_sweep_with_its_line(tmp_path):
    def full(entry):
        raise InputError("ledger/x.json: cannot be written: No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        run(spec_of(0.1), SweepFolder(tmp_path / "t"), tmp_path / "log", full)


@pytest.mark.parametrize(
    ("replicas", "learning", "gigabytes", "cores", "trials"),
    [
        (1, False, 64, 16, IN_FLIGHT),
        (2, True, 1, 1, 1),  # half of 1 GiB: a container that has no more
        (64, False, 256, 16, 128),
        (64, False, 20, 16, 51),  # half of 20 GiB in pieces of 200 MiB
        (64, True, 20, 16, 25),
        (64, False, 256, 2, 16),
    ],
)
def test_as_many_trials_as_replicas_and_the_driver_take(
    replicas, learning, gigabytes, cores, trials
):
    assert in_flight(replicas, learning, gigabytes * 2**30, cores) == trials


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 99])
def test_trials_that_ray_kills_for_memory_begin_again_a_few_times(tmp_path, monkeypatch, killed):
    """Tune itself fails of it."""
    spec = spec_of(0.1, 0.5, 0.9)
    begun, tuned = [], trials.tuned

    def failing(*args):
        begun.append(args[1].left())
        if len(begun) <= killed:
            raise RuntimeError(
                f"Caught unexpected exception: 1 worker(s) were {trials.LOW_MEMORY}. …"
            )
        tuned(*args)

    monkeypatch.setattr(trials, "tuned", failing)
    folder = SweepFolder(tmp_path / "t")
    if killed == 1:
        run(spec, folder, tmp_path / "log")
        assert {entry.params.get("scale") for entry in folder.ledger} >= {0.1, 0.5, 0.9}
        assert len(begun) == 2
        return
    with pytest.raises(OutOfMemory, match=r"^trials: Ray killed their processes .* 3 times"):
        run(spec, folder, tmp_path / "log")
    assert len(begun) == trials.RUNS


def test_another_fault_of_tune_is_raised_as_it_is(tmp_path, monkeypatch):
    def failing(*args):
        raise RuntimeError("No trial runner")

    monkeypatch.setattr(trials, "tuned", failing)
    with pytest.raises(RuntimeError, match=r"^No trial runner$"):
        run(spec_of(0.1), SweepFolder(tmp_path / "t"), tmp_path / "log")
