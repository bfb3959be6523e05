"""The hard eight: which rows are in a task and which in the base's half; the page's tables."""

import json

import datasets
import pytest

from benchmarks.sweeps.hard_pool import entry, half
from benchmarks.tables import costs, matrix

NAMES = ["none", "one", "two", "three", "four"]


@pytest.fixture
def source(tmp_path):
    """Rows whose `number` is their label; the test split has them in reverse."""
    kinds = datasets.Features(
        number=datasets.Value("int64"), label=datasets.ClassLabel(names=NAMES)
    )
    for split, labels in (("train", [0, 1, 2, 3, 4, 3]), ("test", [4, 3, 2, 1, 0])):
        rows = datasets.Dataset.from_dict({"number": labels, "label": labels}, features=kinds)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


@pytest.mark.parametrize(
    ("odd", "names", "train", "test"),
    [
        (True, ["one", "three"], [1, 3, 3], [3, 1]),
        (False, ["none", "two", "four"], [0, 2, 4], [4, 2, 0]),
    ],
)
def test_a_half_has_every_second_class(source, tmp_path, odd, names, train, test):
    out = tmp_path / "half"
    half(source, out, odd)
    for split, numbers in (("train", train), ("test", test)):
        rows = datasets.Dataset.from_parquet(str(out / f"{split}.parquet"), keep_in_memory=True)
        assert rows["number"] == numbers
        assert [NAMES.index(names[label]) for label in rows["label"]] == numbers
    assert entry(out) == {"dataset": str(out), "classnames": names}


def test_costs_have_their_units_and_gaps(tmp_path):
    cost = {"models": 9, "passes": 1.5, "merge_s": 0.0312, "input_s": 0.00125, "gpu_s": None}
    row = {"method": "dawe", "cost": {**cost, "learn_s": None, "extra_parameters": 3204}}
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": [row]}))
    assert costs(tmp_path)[2:] == ["| dawe | 9 | 1.5 | 3,204 | – | 0.03 | 1.25 | – |"]


def test_the_matrix_has_a_row_a_model(tmp_path):
    scores = {
        model: {"a": {"acc": first}, "b": {"acc": second}}
        for model, first, second in (("pretrained", 0.25, 0.5), ("a", 0.9, 0.1), ("b", 0.2, 0.954))
    }
    (tmp_path / "experts.json").write_text(json.dumps({"scores": scores}))
    assert matrix(tmp_path, ["a", "b"])[2:] == [
        "| pretrained | 25.0 | 50.0 |",
        "| a | 90.0 | 10.0 |",
        "| b | 20.0 | 95.4 |",
    ]
