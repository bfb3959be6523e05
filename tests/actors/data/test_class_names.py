"""Names are matched to labels by identity, or refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from actors.data.prompts import builtin
from actors.data.task import Task, TaskSource, open_task
from fusion.errors import InputError

Parquet = Callable[..., Path]


def opened(
    folder: Path,
    parquet: Parquet,
    task: str,
    own: Sequence[str] | None,
    *,
    spec: Sequence[str] | None = None,
    meta: Sequence[str] | None = None,
    count: int | None = None,
) -> Task:
    names = list(own) if own is not None else None
    parquet(folder / "train.parquet", list(range(count or len(names or ()))), names=names)
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps({"classnames": list(meta)}))
    return open_task(TaskSource(task, str(folder), classnames=spec))


QUICKDRAW = ("apple", "bicycle", "cat", "diamond", "eye", "fish")


def test_built_in_names_go_by_identity(tmp_path: Path, parquet: Parquet) -> None:
    own = ["Fish", "EYE", "cat", "apple", "bicycle", "diamond"]
    task = opened(tmp_path, parquet, "quickdraw", own)
    assert task.classnames == ("fish", "eye", "cat", "apple", "bicycle", "diamond")
    assert task.origin == (
        "names built in for 'quickdraw', order from ClassLabel; templates built in for 'quickdraw'"
    )


def test_the_same_number_of_other_names_is_refused(tmp_path: Path, parquet: Parquet) -> None:
    own = ["dog", "car", "sun", "tree", "house", "boat"]
    with pytest.raises(InputError) as caught:
        opened(tmp_path, parquet, "quickdraw", own)
    for part in ("built in for 'quickdraw': 6 ('apple'", "ClassLabel): 6 ('dog'", "classnames"):
        assert part in str(caught.value)
    task = opened(tmp_path, parquet, "quickdraw", own, spec=own)
    assert task.classnames == tuple(own)
    assert "names from the spec" in task.origin


def test_numbers_stand_for_labels(tmp_path: Path, parquet: Parquet) -> None:
    spoken = opened(tmp_path, parquet, "spoken_digits", [str(n) for n in range(10)])
    assert spoken.classnames[:2] == ("zero", "one")
    with pytest.raises(InputError, match="not the same names"):
        opened(tmp_path, parquet, "spoken_digits", [str(n) for n in range(1, 11)])
    with pytest.raises(InputError, match="not the same names"):
        opened(tmp_path, parquet, "mnist", [str(n) for n in range(1, 11)])
    assert opened(tmp_path, parquet, "mnist", [str(9 - n) for n in range(10)]).classnames[0] == "9"


def test_names_that_the_data_set_is_known_to_have(tmp_path: Path, parquet: Parquet) -> None:
    folders = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
               "PermanentCrop", "Residential", "River", "SeaLake")  # fmt: skip
    known = builtin("eurosat")
    assert known is not None
    assert opened(tmp_path, parquet, "eurosat", folders).classnames == known.classnames
    turned = folders[::-1]
    assert opened(tmp_path, parquet, "eurosat", turned).classnames == known.classnames[::-1]


def test_sun397s_own_spelling(tmp_path: Path, parquet: Parquet) -> None:
    known = builtin("sun397")
    assert known is not None
    own = [f"/{name[0]}/{name.replace(' ', '_')}" for name in known.classnames]
    assert opened(tmp_path, parquet, "sun397", own).classnames == known.classnames


def test_the_order_of_the_spec_is_that_of_the_labels(tmp_path: Path, parquet: Parquet) -> None:
    own = ["cat", "dog", "bird"]
    with pytest.raises(InputError, match=r"'Dog' is label 0 in the spec and label 1 in the data"):
        opened(tmp_path, parquet, "x", own, spec=["Dog", "cat", "bird"])
    with pytest.raises(InputError, match=r"'bird' is label 1 in the spec and label 2"):
        opened(tmp_path, parquet, "x", own, spec=["tom", "bird", "rex"])
    task = opened(tmp_path, parquet, "x", own, spec=["a cat", "dog", "sparrow"])
    assert task.classnames == ("a cat", "dog", "sparrow")


def test_meta_beside_the_data(tmp_path: Path, parquet: Parquet) -> None:
    own = ["cat", "dog"]
    task = opened(tmp_path, parquet, "x", own, meta=["DOG", "Cat"])
    assert task.classnames == ("Cat", "DOG")
    assert task.origin.startswith("names from meta.json, order from ClassLabel; templates")
    with pytest.raises(InputError, match=r"in meta.json: 2 \('tom', 'rex'\); in the data"):
        opened(tmp_path, parquet, "x", own, meta=["tom", "rex"])
    turned = QUICKDRAW[::-1]
    task = opened(tmp_path, parquet, "quickdraw", None, meta=turned, count=6)
    assert task.classnames == turned
    assert "order from meta.json" in task.origin


def test_one_side_alone_is_taken_and_said(tmp_path: Path, parquet: Parquet) -> None:
    task = opened(tmp_path, parquet, "quickdraw", None, count=6)
    assert task.classnames == QUICKDRAW
    assert "the data name none: labels are taken to be in that order" in task.origin
    task = opened(tmp_path, parquet, "x", ["cat", "dog"])
    assert task.origin == "names and their order from ClassLabel; templates the default"


@pytest.mark.parametrize("own", [["Cat", "cat"], ["a  b", "A b"], ["cat", " "]])
def test_two_classes_with_the_same_prompts(
    tmp_path: Path, parquet: Parquet, own: list[str]
) -> None:
    with pytest.raises(InputError, match=r"make the same prompts|not blank"):
        opened(tmp_path, parquet, "x", own)


def test_labels_from_1_and_below_0(tmp_path: Path, parquet: Parquet) -> None:
    parquet(tmp_path / "train.parquet", [1, 2, 3])
    source = TaskSource("x", str(tmp_path), classnames=["a", "b", "c"])
    with pytest.raises(InputError, match=r"labels 1 to 3\); they start at 1: labels from 0 are"):
        open_task(source)
    parquet(tmp_path / "train.parquet", [0, -1, 1])
    with pytest.raises(InputError, match=r"split 'train': label -1; labels from 0 are needed"):
        open_task(source)
