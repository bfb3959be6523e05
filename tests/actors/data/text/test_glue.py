"""GLUE by name: templates byte for byte, label order, splits, and STS-B's scores as classes."""

from pathlib import Path

import pytest

from actors.data.split_labels import split_labels
from actors.data.task import Splits, TaskSource, assign, open_task
from actors.data.text.glue import TASKS, builtin
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import open_tokenizer
from tests.refusals import one_line
from tests.tiny_text import write_texts, write_tokenizer

PROMPTS = {
    "cola": 'Indicate if the following sentence is grammatically correct or not: "A".'
    " Answere 'acceptable' or 'unacceptable'.",
    "mnli": "Does the premise: 'A' logically imply, contradict, or is neutral to the hypothesis:"
    " 'B'? Answere with 'entailment', 'contradiction', or 'neutral'.",
    "mrpc": "Are the following sentences 'A' and 'B' conveying the same meaning? Answere with"
    " 'yes' or 'no'.",
    "qnli": "Given the context: 'B', does the question 'A' have an answer based on the information"
    " provided? Answer with 'yes' or 'no'.",
    "qqp": "Do the questions 'A' and 'B' have the same intent? Answere with 'yes' or 'no'.",
    "rte": "Does the text: 'A' entail that 'B' is true? Provide 'yes' or 'no'.",
    "sst2": "Given the sentence 'A', determine the sentiment. Is it positive or negative?",
    "stsb": "Consider the sentences 'A' and 'B'. On a scale from 1 (completely different) to 5"
    " (completely similar), rate the similarity.",
}
TARGETS = {
    "cola": ["unacceptable", "acceptable"],
    "mnli": ["entailment", "neutral", "contradiction"],
    "mrpc": ["no", "yes"],
    "qnli": ["yes", "no"],
    "qqp": ["no", "yes"],
    "rte": ["yes", "no"],
    "sst2": ["negative", "positive"],
}


def write_glue(folder: Path, name: str) -> Path:
    """A GLUE task in the hub's layout, with a test split whose labels are all −1."""
    known = TASKS[name]
    texts = {column: ["A", "B"] for column in known.columns}
    splits = ["train", "validation", "test"]
    if name == "mnli":
        splits = [s for s in splits if s == "train"] + ["validation_matched", "test_matched"]
    labels = {s: [1.26, 5.0] if name == "stsb" else [1, 0] for s in splits}
    labels[splits[-1]] = [-1.0, -1.0] if name == "stsb" else [-1, -1]
    names = None if name == "stsb" else list(known.targets)
    rows = {split: {**texts, "label": labels[split]} for split in splits}
    return write_texts(folder / name, rows, names)


@pytest.mark.parametrize("name", TASKS)
def test_templates_and_targets(name, tmp_path):
    task = open_task(TaskSource(name, str(write_glue(tmp_path, name))), "text")
    row = dict(zip(task.wording.columns, "AB", strict=False))
    assert task.wording.prompt(row) == PROMPTS[name]
    assert task.metric == ("spearman" if name == "stsb" else "acc")
    scores = [f"{tenths / 10:.1f}" for tenths in range(51)]
    assert list(task.wording.targets) == TARGETS.get(name, scores)
    assert "built in for" in task.origin


def test_published_splits(tmp_path):
    published = Splits(select="validation", report="validation")
    for name, own in (("rte", "validation"), ("mnli", "validation_matched")):
        task = open_task(TaskSource(name, str(write_glue(tmp_path, name))), "text")
        places = assign(task, published, select_spelled=True)
        assert places["report"].split == places["select"].split == own
    with one_line("'rte'", "no split 'test'", "'test' is there and has no labels"):
        assign(open_task(TaskSource("rte", str(tmp_path / "rte")), "text"), Splits())


def test_scores_are_classes_rounded_to_one_decimal(tmp_path):
    task = open_task(TaskSource("stsb", str(write_glue(tmp_path, "stsb"))), "text")
    assert len(task.classnames) == 51
    assert split_labels(task, "validation").tolist() == [13, 50]
    assert task.wording.values[13] == 1.3
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "m", ["A", "B"]), "pool.base")
    inputs = TextInputs(tokenizer, 64)
    paths = inputs.prepare({"stsb": task}, [("stsb", "train")], tmp_path)
    assert inputs.open(paths["stsb", "train"]).labels.tolist() == [13, 50]


def test_a_label_outside_the_scores(tmp_path):
    rows = {"sentence1": ["A", "B"], "sentence2": ["A", "B"], "label": [1.0, 7.25]}
    data = write_texts(tmp_path / "stsb", {"train": rows})
    task = open_task(TaskSource("stsb", str(data)), "text")
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "m", ["A", "B"]), "pool.base")
    with one_line("split 'train': row 1: label 7.25; the 51 classes allow 0 to 50"):
        TextInputs(tokenizer, 64).prepare({"stsb": task}, [("stsb", "train")], tmp_path)


def test_the_data_sets_own_label_order_is_kept(tmp_path):
    rows = {"sentence": ["A", "B"], "label": [0, 1]}
    data = write_texts(tmp_path / "sst2", {"train": rows}, ["positive", "negative"])
    task = open_task(TaskSource("sst2", str(data)), "text")
    assert task.wording.targets == ("positive", "negative")
    with one_line("not the same names", start="tasks.sst2: classnames"):
        open_task(TaskSource("sst2", str(write_texts(data, {"train": rows}, ["a", "b"]))), "text")


def test_matched_and_mismatched_rows_in_one_split_are_refused(tmp_path):
    data = write_glue(tmp_path, "mnli")
    for file in (data / "data").iterdir():
        file.rename(data / file.name.replace("test_matched", "validation_mismatched"))
    with one_line("split 'validation' mixes validation_mismatched", start="tasks.mnli: "):
        open_task(TaskSource("mnli", str(data)), "text")


def test_names():
    assert builtin("GLUE-SST-2", "x")[1] == "sst2"
    assert builtin("x", "glue:cola@main")[1] == "cola"
    assert builtin("cola-like", "org/glue:cola") is None
