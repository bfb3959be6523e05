"""Tune's event files: one a trial, with the metrics, for TensorBoard."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from sweeps.results.folder import SweepFolder
from tests.sweeps.trials import test_run_trials

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def scalars(file: Path) -> dict[str, float]:
    """Tag -> last value; records are length (8 bytes), checksum (4), event, checksum (4)."""
    data, at, found = file.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {value.tag: value.simple_value for value in event.summary.value}
        at += 12 + length + 4
    return found


def test_each_trial_has_an_event_file_with_its_metrics(tmp_path):
    folder = SweepFolder(tmp_path / "t")
    test_run_trials.run(test_run_trials.spec_of(0.1, 0.5, 0.9), folder, tmp_path / "log")
    entries = {entry.trial_key: entry for entry in folder.ledger if entry.params}
    assert sorted(entry.params["scale"] for entry in entries.values()) == [0.1, 0.5, 0.9]
    for key, entry in entries.items():
        (file,) = folder.tune.glob(f"task_arithmetic-{key}/events.out.tfevents.*")
        if entry.status == "done":
            found = scalars(file)
            assert found["ray/tune/acc/mean"] == pytest.approx(entry.params["scale"])
            assert found["ray/tune/acc/x"] == pytest.approx(entry.params["scale"])
