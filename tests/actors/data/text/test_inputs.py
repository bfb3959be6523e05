import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.artifacts.cache_files import fault_of, files_of
from actors.data.protocol import Corruption
from actors.data.task import Task, TaskSource, open_task
from actors.data.task_rows import Rows
from actors.data.text.corruptions import corrupted
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import open_tokenizer
from tests.refusals import exactly, one_line
from tests.tiny_text import write_texts, write_tokenizer

WORDS = ["is", "a", "cat", "dog", "good", "bad", "?", "very", "yes", "no", "maybe"]
TEXTS = ["a cat", "a very good dog", "a bad cat"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = {"text": TEXTS, "label": [1, 0, 1]}
    return write_texts(tmp_path / "data", {"train": train}, ["dog", "cat"])


@pytest.fixture
def task(folder: Path) -> Task:
    given = TaskSource("pets", str(folder), template="is {text} good ?", targets=["no", "yes"])
    return open_task(given, "text")


@pytest.fixture
def inputs(tmp_path: Path) -> TextInputs:
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "model", WORDS), "pool.base")
    return TextInputs(tokenizer, tokenizer.limit(512))


def prepared(inputs: TextInputs, task: Task, root: Path):
    return inputs.open(
        inputs.prepare({task.name: task}, [(task.name, "train")], root)[task.name, "train"]
    )


def ids(text: str) -> list[int]:
    return [{word: at + 3 for at, word in enumerate(WORDS)}[word] for word in text.split()] + [1]


def test_the_cache_list_knows_the_files_of_tokens(inputs, task, tmp_path):
    found = inputs.prepare({task.name: task}, [(task.name, "train")], tmp_path)
    files = files_of("tokens", tmp_path)
    assert files == list(found.values())
    assert fault_of("tokens", files[0]) is None
    files[0].write_bytes(files[0].read_bytes()[:-100])
    assert fault_of("tokens", files[0]) is not None


def test_rows_are_prompts_as_ids(inputs, task, tmp_path):
    assert inputs.row.ragged == {"ids": ("int32", 32)}
    found = prepared(inputs, task, tmp_path)
    assert found.labels.tolist() == [1, 0, 1]
    assert found.lengths.tolist() == [6, 8, 7]
    taken = found.take(torch.tensor([1, 0]))
    assert taken["ids"].tolist() == ids("is a very good dog good ?") + ids("is a cat good ?")
    batch = inputs.collate([taken])
    assert list(batch) == ["ids", "mask"]
    assert batch["ids"].tolist() == [
        ids("is a very good dog good ?"), [*ids("is a cat good ?"), 0, 0]
    ]  # fmt: skip
    assert batch["mask"].sum(1).tolist() == [8, 6]
    assert not batch["mask"][1, 6:].any()


def test_rows_for_people_are_their_prompts(inputs, task, tmp_path):
    found = prepared(inputs, task, tmp_path)
    shown = inputs.preview(found, torch.tensor([1, 0]))
    assert shown == ["is a very good dog good ?", "is a cat good ?"]
    assert inputs.preview(found, torch.tensor([], dtype=torch.int64)) == []


def test_answers_are_the_same_for_all_rows(inputs, task, tmp_path):
    with_answers = replace(inputs, answers=True)
    task = replace(task, wording=replace(task.wording, targets=("no", "very yes")))
    batch = with_answers.collate(
        [prepared(with_answers, task, tmp_path).take(torch.tensor([0, 2]))]
    )
    expected = [[*ids("no"), -1], ids("very yes")]
    assert batch["answers"].tolist() == [expected, expected]


def test_answers_of_two_tasks_are_stacked(inputs):
    parts = [
        {
            "ids": torch.ones(1, dtype=torch.int32),
            "ids.lengths": torch.tensor([1]),
            "answers": answers,
        }
        for answers in (torch.tensor([[[5, 1], [6, 1]]]), torch.tensor([[[7, 8, 1]]]))
    ]
    found = replace(inputs, answers=True).collate(parts)["answers"]
    assert found.tolist() == [[[5, 1, -1], [6, 1, -1]], [[7, 8, 1], [-1, -1, -1]]]


def test_fields_are_pairs(inputs, tmp_path):
    columns = {"a": ["a cat", "a dog"], "b": ["good", "very bad"], "label": [0, 1]}
    data = write_texts(tmp_path / "pairs", {"train": columns}, ["no", "yes"])
    pairs = open_task(TaskSource("pairs", str(data), text=["b", "a"]), "text")
    assert pairs.wording.template == "{b} {a}"
    fields = replace(inputs, words="fields")
    batch = fields.collate([prepared(fields, pairs, tmp_path).take(torch.tensor([0, 1]))])
    assert batch["ids"].tolist() == [
        [*ids("good"), *ids("a cat"), 0], [*ids("very bad"), *ids("a dog")]
    ]  # fmt: skip
    assert batch["types"].tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]


def test_long_rows_are_cut_and_counted(inputs, task, tmp_path, caplog):
    short = replace(inputs, limit=7)
    caplog.set_level(logging.WARNING)
    found = prepared(short, task, tmp_path)
    assert found.take(torch.tensor([1]))["ids"].tolist() == [
        *ids("is a very good dog good")[:-1],
        1,
    ]
    said = "task 'pets': split 'train': 1 of 3 rows are longer than 7 tokens (the longest has 8)"
    assert said in caplog.text
    caplog.clear()
    prepared(short, task, tmp_path)  # from the cache
    assert said in caplog.text


def test_files_are_named_by_all_they_depend_on(inputs, task, tmp_path):
    words = task.wording
    tasks = [
        task,
        replace(task, wording=replace(words, template="{text}")),
        replace(task, wording=replace(words, targets=("a", "b"))),
    ]
    kinds = [
        inputs,
        replace(inputs, limit=9),
        replace(inputs, words="fields"),
        replace(inputs, answers=True),
    ]
    other = open_tokenizer(write_tokenizer(tmp_path / "other", WORDS[::-1]), "pool.base")
    kinds.append(replace(inputs, tokenizer=other))
    paths = {kind.path(each, "train", tmp_path) for kind in kinds for each in tasks}
    assert len(paths) == len(tasks) * len(kinds)


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ({"text": ["a", "  "], "label": [0, 1]}, ["row 1: column 'text': an empty text"]),
        ({"text": ["a", "b"], "label": [0, -1]}, ["label -1"]),
    ],
)
def test_rows_that_are_refused(columns, parts, inputs, tmp_path):
    data = write_texts(tmp_path / "bad", {"train": columns, "test": columns})
    source = TaskSource("bad", str(data), classnames=["x", "y"])
    with one_line(*parts, "train"):
        task = open_task(source, "text")
        inputs.prepare({"bad": task}, [("bad", "train")], tmp_path)
    assert not list(tmp_path.rglob("*.arrow"))


def test_targets_that_share_all_tokens_are_refused(inputs, task):
    inputs.check([task])
    for targets, message in (
        (("yes", "wolf"), "'wolf': no token of the tokenizer's is in it"),
        (("a wolf", "a fox"), "'a wolf' and 'a fox' share all their tokens"),
        (("good </s>", "yes"), "'good </s>': has the token '</s>', which no answer may contain"),
        (("<pad> good", "yes"), "has the token '<pad>', which no answer may contain"),
    ):
        with one_line(message, start="tasks.pets: targets"):
            inputs.check([replace(task, wording=replace(task.wording, targets=targets))])


def test_images_are_refused(inputs, task):
    with one_line("tasks.pets: images; the pool's models read texts"):
        inputs.check([replace(task, wording=None)])


def test_rows_are_corrupted_by_their_number_before_the_template(inputs, task, tmp_path):
    clean = prepared(inputs, task, tmp_path)
    file = inputs.path(task, "train", tmp_path)
    shift = Corruption("word_drop", 5, seed=3)
    rows = Rows(file, np.array([1]), {"x": file}, "train")
    found = inputs.corrupted(rows, task, "train", shift, tmp_path)
    assert found.indices is rows.indices
    assert not found.features
    assert found.file != file
    made = inputs.open(found.file)
    assert made.labels.tolist() == clean.labels.tolist()
    for at, text in enumerate(TEXTS):
        words = corrupted({"text": text}, at, shift)["text"]
        assert made.take(torch.tensor([at]))["ids"].tolist() == ids(f"is {words} good ?")
    assert made.lengths.sum() < clean.lengths.sum()
    other = inputs.corrupted(rows, task, "train", replace(shift, seed=4), tmp_path)
    assert other.file != found.file
    assert inputs.path(task, "train", tmp_path) == file  # of clean rows, as before


def test_a_corruption_of_images_is_refused(inputs):
    inputs.check_corruption("typos", "shifts.a: corruption: 'typos'")
    line = "of images; the pool's models read texts: one of typos, word_drop allowed"
    with exactly(f"shifts.a: {line}"):
        inputs.check_corruption("contrast", "shifts.a")
