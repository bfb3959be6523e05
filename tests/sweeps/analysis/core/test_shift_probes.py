"""Shift sets of an analysis: which rows they are, and that none is reported on."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from actors.data.images.inputs import ImageInputs
from actors.data.images.pixel_cache import open_pixels
from actors.data.images.preprocessor_config import read_preprocess
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import Rows, TaskData
from sweeps.analysis.core.evaluated_points import PROBE, Points, with_probe
from sweeps.analysis.core.shift_probes import described, place_of, shift_contexts, with_shift_probes
from sweeps.console.progress import Progress
from sweeps.spec.sweep import load
from tests.sweeps.analysis.geometry_pool import Bowl, pixel_file

SPLITS = Splits()


def folder_of(pool, place: Path, **splits: str):
    """A data set of lines whose splits are copies of the pool's."""
    place.mkdir(parents=True)
    for name, source in splits.items():
        shutil.copy(pool.root / f"data/lines/{source}.parquet", place / f"{name}.parquet")
    return open_task(TaskSource("lines (shifts.x)", str(place)))


def test_rows_of_another_data_set(tiny_pool, tmp_path):
    both = folder_of(tiny_pool, tmp_path / "both", train="train", test="test")
    assert vars(place_of(both, SPLITS, False, "x")) == {"split": "train", "part": "val"}
    own = folder_of(tiny_pool, tmp_path / "own", validation="train", test="test")
    assert vars(place_of(own, SPLITS, False, "x")) == {"split": "validation", "part": "all"}
    for name in ("test", "train"):  # the one that there is is reported on
        alone = folder_of(tiny_pool, tmp_path / f"alone-{name}", **{name: "test"})
        assert place_of(alone, SPLITS, False, "x") is None
    copy = folder_of(tiny_pool, tmp_path / "copy", val="test", test="test")
    assert place_of(copy, SPLITS, False, "x") is None  # the same rows by another name
    spelled = replace(SPLITS, select="test")
    alone = open_task(TaskSource("lines", str(tmp_path / "alone-test")))
    assert place_of(alone, spelled, True, "x").split == "test"


def prepared_of(tiny_pool, tmp_path, experts, **shifts):
    """What `prepare` finds, as far as shift sets go."""
    spec = load(tiny_pool.write(tmp_path / "tiny.yaml", shifts=shifts))
    pool = spec.pool.model_copy(update={"experts": dict.fromkeys(experts, "x")})
    spec = spec.model_copy(update={"pool": pool})
    others = {
        (name, shift.task): open_task(TaskSource(f"{shift.task} (shifts.{name})", shift.dataset))
        for name, shift in spec.shifts.items()
        if shift.dataset
    }
    folder = tiny_pool.root / "base"
    return SimpleNamespace(
        spec=spec,
        others=others,
        splits=SPLITS,
        pool=SimpleNamespace(base=SimpleNamespace(folder=folder)),
        inputs=ImageInputs(read_preprocess(folder)),
        tasks={"lines": None, "tones": None, "blobs": None},  # corrupted images need no task
    )


@pytest.mark.parametrize("soup", [True, False])
def test_roles_of_shift_sets(tiny_pool, tmp_path, soup):
    names = ("a", "b", "c") if soup else ("lines", "tones", "a")
    prepared = prepared_of(
        tiny_pool, tmp_path, names,
        noise={"corruption": "contrast", "severity": 5, "task": "lines"},
        other={"dataset": str(tiny_pool.root / "data/blobs"), "task": "lines"},
        fog={"corruption": "contrast"},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images = pixel_file(tmp_path / "p.arrow", [0, 1] * 30, rng.integers(0, 256, (60, 3, 32, 32)))
    data = {
        task: TaskData(task, tmp_path / "head", {"select": Rows(images, np.arange(10, 40))})
        for task in ("lines", "tones")
    }
    data = with_shift_probes(with_probe(data, 8, 0), prepared, 4)
    probe = data["lines"].rows[PROBE]
    noisy = data["lines"].rows["shift/noise"]
    pixels, clean = open_pixels(noisy.file), open_pixels(images)
    assert pixels.labels.tolist() == clean.labels[probe.indices].tolist()
    assert pixels.images.float().std() < 0.3 * clean.images[probe.indices].float().std()
    assert "shift/noise" not in data["tones"].rows
    other = data["lines"].rows["shift/other"].indices  # 4 of the part of train that val is
    assert len(other) == 4
    points = Points(Bowl(), names, PROBE, tmp_path / "c-probe8.json", Progress(Console(quiet=True)))
    found = shift_contexts(points, prepared, data)
    assert described(prepared).key == found.key
    first, *more = found.contexts
    if soup:
        assert not more
        assert (first.tasks, first.expert, first.clean) == (("lines", "tones"), None, points)
        roles = {name: each.role for name, each in first.shifts.items()}
        assert roles == {name: f"shift/{name}" for name in ("noise", "other", "fog")}
        assert not any("@" in role for task in data.values() for role in task.rows)
    else:
        assert [context.expert for context in found.contexts] == ["lines", "tones"]
        (last,) = more
        assert {name: each.role for name, each in last.shifts.items()} == {"fog": "shift/fog@tones"}
        assert last.clean.file.name == "c-probe8@tones.json"
        assert "probe@tones" in data["tones"].rows
        assert "probe@tones" not in data["lines"].rows
    files = [each.file for context in found.contexts for each in context.shifts.values()]
    assert len(set(files)) == len(files)


def test_other_shift_sets_are_another_context(tiny_pool, tmp_path):
    keys = [
        described(prepared_of(tiny_pool, tmp_path, ("a",), **shifts)).key
        for shifts in (
            {"n": {"corruption": "contrast"}}, {"n": {"corruption": "contrast", "severity": 4}},
            {"m": {"corruption": "contrast"}}, {},
        )
    ]  # fmt: skip
    assert len(set(keys)) == 4
    assert keys[-1] == ""
