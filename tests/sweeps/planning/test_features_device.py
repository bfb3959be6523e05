"""Features of gates are computed where the sweep is planned to compute."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actors.data.task_rows import Rows, TaskData
from sweeps.execution import start_fleet
from sweeps.planning import shift_rows
from sweeps.spec.shift import ShiftSpec


class Asked(Exception):
    """Carries what was asked."""


def asked(*args, **given):
    raise Asked(given.get("device"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_those_of_all_images(device, monkeypatch):
    monkeypatch.setattr(start_fleet, "prepare_data", asked)
    spec = SimpleNamespace(splits=SimpleNamespace(select_spelled=False), unseen=())
    prepared = SimpleNamespace(
        pool=SimpleNamespace(base=None), tasks={}, splits=None, spec=spec,
        plan=SimpleNamespace(device=device), inputs=SimpleNamespace(kind="images"),
    )  # fmt: skip
    progress = SimpleNamespace(doing=lambda _: nullcontext(), set=print)
    with pytest.raises(Asked, match=device):
        start_fleet.start_fleet(ExitStack(), None, prepared, progress, ["select"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("corruption", ["gaussian_noise", None])
def test_those_of_images_under_shift(device, corruption, monkeypatch):
    monkeypatch.setattr(shift_rows, "prepare_features", asked)
    monkeypatch.setattr(shift_rows, "corrupted_features", asked)
    monkeypatch.setattr(shift_rows, "split_of", lambda *args: "test")
    shift = ShiftSpec.model_construct(corruption=corruption, severity=1, seed=0)
    splits = SimpleNamespace(report="test", select_spelled=False)
    prepared = SimpleNamespace(
        spec=SimpleNamespace(shifts={"noise": shift}, splits=splits),
        others={("noise", "t"): SimpleNamespace(name="other")}, tasks={"t": None}, splits=None,
        plan=SimpleNamespace(device=device),
    )  # fmt: skip
    task = TaskData("t", Path("head"), {"report": Rows(Path("pixels"), np.arange(2))})
    with pytest.raises(Asked, match=device):
        shift_rows.features_of(prepared, task, "shift/noise", None)
