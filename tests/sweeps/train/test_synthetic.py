"""Synthetic rows of training files: what is refused, which rows are kept, and a whole training."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from actors.data.task import Splits, open_task
from actors.data.task_rows import SYNTHETIC, Rows, TaskData
from actors.experts.prepare_data import prepare_data
from actors.families.registry import family_in, inspect, training_of
from fusion.errors import InputError
from sweeps.train.inputs.synthetic import Counts, filtered, open_synthetic
from sweeps.train.run import contexts, train
from sweeps.train.spec import SyntheticSpec
from tests.sweeps.train.test_run import load as loaded
from tests.sweeps.train.test_run import spec
from tests.tiny_pool import TinyPool


def content(pool: TinyPool, out: Path, **synthetic: Any) -> dict[str, Any]:
    """A training of one task over the tiny pool's base, with synthetic rows: the task's own."""
    found = spec(pool, out, base=str(pool.root / "base"))
    del found["pretrain"], found["tasks"]["tones"]
    found["finetune"] = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
    given = {"dataset": str(pool.root / "data" / "lines"), **synthetic}
    found["tasks"]["lines"]["synthetic"] = given
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dataset": None}, "tasks.lines.synthetic.dataset: None"),
        ({"threshold": 1.0}, "tasks.lines.synthetic.threshold: 1.0"),
        ({"per_class": 0}, "tasks.lines.synthetic.per_class: 0"),
        ({"clip_filter": False, "per_class": 3}, "per_class: 3: belongs to clip_filter, which is"),
        ({"share": 0.5}, "tasks.lines.synthetic.share: 0.5: unknown field 'share'"),
    ],
)
def test_a_file_that_will_not_do(given, expected, tiny_pool, tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        loaded(content(tiny_pool, tmp_path / "out", **given), tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def opened(pool: TinyPool, tmp_path: Path, **given: Any) -> Any:
    """The spec, its task, and the synthetic data set."""
    found = loaded(content(pool, tmp_path / "out", **given), tmp_path)
    tasks = {"lines": open_task(found.tasks["lines"].source("lines"))}
    base = inspect(found.base, "base")
    inputs = family_in(base).inputs(base)
    return found, tasks, base, lambda: open_synthetic(found, tasks, training_of(base), inputs.kind)


def test_other_classes_are_refused(tiny_pool, tmp_path) -> None:
    *_, synthetic = opened(
        tiny_pool, tmp_path, dataset=str(tiny_pool.root / "data" / "tones")
    )  # three classes
    with pytest.raises(InputError, match=r"tasks\.lines\.synthetic: "):
        synthetic()


def test_keys_of_trainings_without_synthetic_rows_stay(tiny_pool, tmp_path) -> None:
    found, tasks, base, synthetic = opened(tiny_pool, tmp_path)
    made = synthetic()
    starts, splits = {"lines": base}, Splits()
    plain = loaded(
        content(tiny_pool, tmp_path / "out") | {"tasks": {"lines": {
            "dataset": found.tasks["lines"].dataset}}}, tmp_path,
    )  # fmt: skip
    without = contexts(plain, starts, tasks, splits)
    assert contexts(plain, starts, tasks, splits, {}) == without
    with_rows = contexts(found, starts, tasks, splits, made)
    assert with_rows != without
    stricter = replace_synthetic(found, threshold=0.9)
    assert contexts(stricter, starts, tasks, splits, made) not in (without, with_rows)
    assert "synthetic" not in plain.tasks["lines"].model_dump()


def replace_synthetic(found: Any, **changes: Any) -> Any:
    task = found.tasks["lines"]
    given = task.synthetic.model_copy(update=changes)
    return found.model_copy(update={"tasks": {"lines": task.model_copy(
        update={"synthetic": given})}})  # fmt: skip


@pytest.fixture
def data(tiny_pool, tmp_path) -> tuple[Path, TaskData, Path]:
    """Base, a task whose synthetic rows are its fit rows, and the cache."""
    _, tasks, base, _ = opened(tiny_pool, tmp_path)
    found = prepare_data(base, tasks, Splits(), ("fit", "select", "report"), tmp_path / "cache")
    rows = found["lines"].rows
    task = replace(found["lines"], rows={**rows, SYNTHETIC: rows["fit"]})
    return base.folder, task, tmp_path / "cache"


def rows_kept(data: tuple[Path, TaskData, Path], **given: Any) -> tuple[list[int], Counts]:
    base, task, root = data
    kept, counts = filtered(base, task, SyntheticSpec(dataset="x", **given), root)
    return kept.tolist(), counts


def test_filters(data) -> None:
    rows, counts = rows_kept(data, clip_filter=False, real_filter=False)
    assert rows == list(range(counts.rows))
    kept, counts = rows_kept(data)
    assert counts.kept == len(kept) < counts.rows
    assert counts.apart == counts.rows  # each row is nearest to itself, a real one of its class
    assert len(kept) == counts.confident
    none, counts = rows_kept(data, threshold=0.999999)
    assert none == []
    assert counts.kept == 0
    few, _ = rows_kept(data, threshold=0.0, per_class=2)
    labels = torch.tensor(labels_of(data))
    assert sorted(labels[few].tolist()) == sorted(2 * labels.unique().tolist())


def labels_of(data: tuple[Path, TaskData, Path]) -> list[int]:
    from actors.data.row_file import open_labels

    rows: Rows = data[1].rows["fit"]
    return open_labels(rows.file)[torch.from_numpy(rows.indices)].tolist()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_training_with_synthetic_rows(tiny_pool, tmp_path) -> None:
    out, console = tmp_path / "out", Console(file=sys.stderr)
    given = content(tiny_pool, out, threshold=0.0)
    assert train(loaded(given, tmp_path), console) == []
    counted = json.loads((out / "synthetic.json").read_text())["lines"]
    assert counted["kept"] == counted["confident"] == counted["rows"] > 0
    weights = (out / "experts" / "lines" / "model.safetensors").read_bytes()
    del given["tasks"]["lines"]["synthetic"]
    given["out"] = str(tmp_path / "plain")
    assert train(loaded(given, tmp_path), console) == []
    plain = (tmp_path / "plain" / "experts" / "lines" / "model.safetensors").read_bytes()
    assert weights != plain
    given = content(tiny_pool, tmp_path / "none", threshold=0.999999)
    with pytest.raises(InputError, match=r"synthetic: none of \d+ rows passes the filters"):
        train(loaded(given, tmp_path), console)
