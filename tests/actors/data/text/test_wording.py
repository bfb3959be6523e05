"""Templates and targets, and what is refused of a text task before anything is started."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from actors.data.task import Splits, TaskSource, assign, open_task
from actors.data.text.wording import Wording, fields_of, targets_of
from tests.refusals import one_line
from tests.tiny_text import write_texts

ROWS = {"text": ["x", "y"], "other": ["p", "q"], "label": [0, 1]}


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_texts(tmp_path / "data", {"train": ROWS}, ["not_a_cat", "a_cat"]))


def test_braces_and_nothing_else_are_special():
    wording = Wording("{{{a}}} 100% {a b}\n", ("a", "a b"), ())
    assert wording.prompt({"a": "{x}", "a b": "%s"}) == "{{x}} 100% %s\n"
    assert fields_of("{b} {a} {b}", "t") == ("b", "a")


def test_defaults(data):
    task = open_task(TaskSource("t", data), "text")
    assert task.wording == Wording("{text}", ("text",), ("not a cat", "a cat"))
    assert task.templates == ()
    both = open_task(TaskSource("t", data, text=["text", "other"]), "text")
    assert both.wording.prompt({"text": "x", "other": "p"}) == "x p"
    mapped = open_task(TaskSource("t", data, targets={"A cat": "yes", "not_a_cat": "no"}), "text")
    assert mapped.wording.targets == ("no", "yes")


def test_the_fingerprint_has_the_wording(data):
    given = [
        {},
        {"template": "say {text}"},
        {"targets": ["no", "yes"]},
        {"metric": "f1"},
        {"text": "other"},
    ]
    found = {open_task(TaskSource("t", data, **each), "text").fingerprint for each in given}
    assert len(found) == len(given)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"template": "no field"}, ["template 'no field': no field"]),
        ({"template": "{}"}, ["field {}", "{column}"]),
        ({"template": "{text:>9}"}, ["field {text:>9}"]),
        ({"template": "{text"}, ["template '{text'"]),
        ({"template": "{wrong}"}, ["text: no column 'wrong'; there: ['text', 'other', 'label']"]),
        ({"template": "{wrong}", "text": "text"}, ["field {wrong}: no such column among text"]),
        ({"targets": ["a", "a "]}, ["'a ' of the classes 'not_a_cat' and 'a_cat'"]),
        ({"targets": ["a", " "]}, ["' ' of class 'a_cat': blank"]),
        ({"targets": ["a"]}, ["targets: 1; one for each of the 2 classes needed"]),
        ({"targets": {"a_cat": "yes"}}, ["targets: none for class 'not_a_cat'"]),
        ({"targets": {"a_cat": "x", "A CAT": "y", "not_a_cat": "z"}}, ["'a_cat': named twice"]),
        ({"text": ["text", "other", "text"]}, ["text: text, other, text: a column twice"]),
        ({"targets": {"dog": "yes"}}, ["'dog': no such class"]),
        ({"templates": ["a {}"]}, ["templates: ['a {}']; the pool's models read texts"]),
    ],
)
def test_words_that_are_refused(given, parts, data):
    with one_line(*parts, start="tasks.t: "):
        open_task(TaskSource("t", data, **given), "text")


def test_words_of_an_image_task_are_refused(data):
    with one_line("text: 'text'; the pool's models read images", start="tasks.t: "):
        open_task(TaskSource("t", data, text="text"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 2], "text: column 'text' holds int64; texts needed"),
        (["x", None], "text: column 'text': 1 rows without a text, the first is row 1"),
    ],
)
def test_columns_that_are_no_texts(column, message, tmp_path):
    rows = {"text": column, "label": [0, 1]}
    folder = write_texts(tmp_path / "bad", {"train": rows}, ["a", "b"])
    with one_line(message, start="tasks.t: "):
        open_task(TaskSource("t", str(folder)), "text")


def test_targets_by_label():
    assert targets_of(None, ["top_up", "b"], "t") == ("top up", "b")
    assert targets_of(["x", "y"], ["a", "b"], "t") == ("x", "y")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "json"])
def test_empty_texts_are_found_before_anything_starts(kind, tmp_path):
    """By column and row of the split, in splits that are used."""
    good = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
    bad = {"text": ["a", "\u00a0 ", "c", "d", ""], "label": [0, 1, 0, 1, 0]}
    folder = tmp_path / "data"
    if kind == "parquet":
        write_texts(folder, {"train": good, "test": bad}, ["x", "y"])
        file = next(folder.rglob("test*.parquet"))
        pq.write_table(pq.read_table(file), file, row_group_size=2)
    elif kind == "arrow":
        found = {"train": Dataset.from_dict(good), "test": Dataset.from_dict(bad)}
        DatasetDict(found).save_to_disk(folder)
    else:
        folder.mkdir()
        for split, rows in (("train", good), ("test", bad)):
            lines = [{"text": t, "label": at} for t, at in zip(*rows.values(), strict=True)]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = open_task(TaskSource("t", str(folder), classnames=("x", "y")), "text")
    assert assign(task, Splits(), roles=("fit", "select"))
    said = "split 'test': column 'text': 2 empty texts, the first is row 1"
    with one_line(said, start="task 't': splits.report: "):
        assign(task, Splits())
