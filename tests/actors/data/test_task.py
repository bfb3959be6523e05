import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.data.task import Place, Splits, Task, TaskSource, assign, open_task, partition
from fusion.errors import InputError
from tests.refusals import one_line


def test_names_from_the_data(animals: Path) -> None:
    task = open_task(TaskSource("pets", str(animals)))
    assert task.classnames == ("cat", "dog")
    assert task.templates == ("a photo of a {}.",)
    assert task.splits == {"test": 6, "train": 20}
    assert task.dataset == str(animals)


def test_names_from_meta_and_from_the_spec(animals: Path) -> None:
    meta = {"classnames": ["Dog", "CAT"], "templates": ["my {}"]}
    (animals / "meta.json").write_text(json.dumps(meta))
    task = open_task(TaskSource("pets", str(animals)))
    assert (task.classnames, task.templates) == (("CAT", "Dog"), ("my {}",))
    given = TaskSource("pets", str(animals), classnames=["a", "b"], templates=["{}!"])
    task = open_task(given)
    assert (task.classnames, task.templates) == (("a", "b"), ("{}!",))


def test_names_built_in(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    parquet(tmp_path / "train.parquet", list(range(10)))
    task = open_task(TaskSource("eurosat", str(tmp_path)))
    assert task.classnames[0] == "annual crop land"
    assert len(task.templates) == 3


def refused(source: TaskSource, *parts: str) -> None:
    with one_line(*parts, start=f"tasks.{source.name}: "):
        open_task(source)


def test_names_that_do_not_fit(animals: Path, tmp_path: Path, parquet: Callable[..., Path]) -> None:
    data = str(animals)
    refused(TaskSource("pets", data, classnames=["a", "b", "c"]), "3 in the spec", "2 classes")
    refused(TaskSource("pets", data, classnames=["a", "a"]), "make the same prompts")
    refused(TaskSource("mnist", data), "built in for 'mnist': 10", "2 ('cat', 'dog')")
    bare = parquet(tmp_path / "bare" / "train.parquet", [0, 1, 2]).parent
    refused(TaskSource("x", str(bare)), "neither in meta.json nor in the data")
    refused(TaskSource("x", str(bare), classnames=["a", "b"]), "classnames: 2", "3 classes")
    fine = open_task(TaskSource("x", str(bare), classnames=["a", "b", "c", "d"]))
    assert len(fine.classnames) == 4


def test_wrong_sources(animals: Path) -> None:
    refused(TaskSource("pets", str(animals / "none")), "no such folder")
    refused(TaskSource("pets", "a/b/c"), "neither a folder nor a hub id", "'a/b/c'")
    refused(TaskSource("pets", str(animals), templates=["a photo"]), "template 'a photo'")
    (animals / "meta.json").write_text("{")
    refused(TaskSource("pets", str(animals)), "meta.json", "not JSON")
    (animals / "meta.json").write_text('{"classnames": [1, 2]}')
    refused(TaskSource("pets", str(animals)), "meta.json", "a list of strings")


def test_fingerprint_is_of_the_content(animals: Path, parquet: Callable[..., Path]) -> None:
    one = open_task(TaskSource("a", str(animals)))
    named = open_task(TaskSource("b", str(animals), classnames=["x", "y"]))
    assert one.fingerprint == named.fingerprint
    parquet(animals / "test.parquet", [0], names=["cat", "dog"], first=7)
    assert open_task(TaskSource("a", str(animals))).fingerprint != one.fingerprint


def test_opening_imports_no_framework(animals: Path) -> None:
    code = (
        "import sys; from actors.data.task import TaskSource, open_task;"
        f"open_task(TaskSource('a', {str(animals)!r}));"
        "print([m for m in ('transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def task(animals: Path) -> Task:
    return open_task(TaskSource("pets", str(animals)))


def with_val(animals: Path, parquet: Callable[..., Path], name: str, first: int = 50) -> Task:
    labels = [1, 0, 1, 0, 1, 1] if first == 100 else [0, 1]
    parquet(animals / f"{name}.parquet", labels, names=["cat", "dog"], first=first)
    return open_task(TaskSource("pets", str(animals)))


def test_val_is_carved_from_train(task: Task) -> None:
    assert assign(task, Splits()) == {
        "fit": Place("train", "fit"),
        "select": Place("train", "val"),
        "report": Place("test", "all"),
    }


@pytest.mark.parametrize("name", ["val", "validation"])
def test_val_is_the_data_sets_own(animals: Path, parquet: Callable[..., Path], name: str) -> None:
    places = assign(with_val(animals, parquet, name), Splits())
    assert places["select"] == Place("validation", "all")
    assert places["fit"] == Place("train", "all")


def test_train_is_whole_where_nothing_is_carved(task: Task) -> None:
    places = assign(task, Splits(select="train", fit="test"))
    assert places["select"] == Place("train", "all")


def test_splits_that_are_not_there(task: Task) -> None:
    message = r"task 'pets': splits.report: no split 'tset'; there: train, test \(and val: a part"
    with pytest.raises(InputError, match=message):
        assign(task, Splits(report="tset"))


def test_an_empty_split(animals: Path, parquet: Callable[..., Path]) -> None:
    train = open_task(TaskSource("pets", str(animals)))
    layout = train.layout
    hollow = {**layout.splits, "test": replace(layout.splits["test"], rows=0)}
    empty = replace(train, layout=replace(layout, splits=hollow))
    with pytest.raises(InputError, match=r"splits.report: split 'test' is empty"):
        assign(empty, Splits())


def test_selecting_on_the_reporting_split_must_be_spelled_out(task: Task) -> None:
    splits = Splits(select="test")
    with pytest.raises(InputError, match="write select: test"):
        assign(task, splits)
    places = assign(task, splits, select_spelled=True)
    assert places["select"] == places["report"] == Place("test", "all")
    with pytest.raises(InputError, match="write select: val"):
        assign(task, Splits(report="val"))


def test_one_content_under_two_names(animals: Path, parquet: Callable[..., Path]) -> None:
    same = with_val(animals, parquet, "validation", first=100)
    for spelled in (False, True):
        with pytest.raises(
            InputError, match=r"'val' holds the same rows as splits\.report: 'test'"
        ):
            assign(same, Splits(), select_spelled=spelled)


def test_partition_is_stratified_and_repeats() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 30, 2]))
    fit, val = partition(labels, 0.1, seed=0)
    assert np.bincount(labels[val]).tolist() == [10, 3, 1]
    assert np.array_equal(np.sort(np.concatenate([fit, val])), np.arange(132))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(val) > 0).all()
    assert np.array_equal(partition(labels, 0.1, seed=0)[1], val)
    assert not np.array_equal(partition(labels, 0.1, seed=1)[1], val)


def test_partition_keeps_one_of_each_class_to_fit() -> None:
    fit, val = partition(np.array([0, 0, 1]), 0.99)
    assert (len(fit), len(val)) == (2, 1)
    assert 2 in fit


def test_partition_refuses() -> None:
    with pytest.raises(InputError, match=r"val_fraction: 1.0; between"):
        partition(np.array([0, 0]), 1.0)
    with pytest.raises(InputError, match="none of the 2 rows can be spared"):
        partition(np.array([0, 1]))


def test_a_role_that_needs_a_split_without_labels(
    animals: Path, parquet: Callable[..., Path]
) -> None:
    parquet(animals / "test.parquet", [-1, -1], names=["cat", "dog"])
    task = open_task(TaskSource("pets", str(animals)))
    with pytest.raises(InputError, match=r"no split 'test'; .*'test' is there and has no labels"):
        assign(task, Splits())


@pytest.mark.parametrize("name", ["testing", "eval", "Test"])
def test_other_words_for_a_split(task: Task, name: str) -> None:
    assert assign(task, Splits(report=name))["report"] == Place("test", "all")
