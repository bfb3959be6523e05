"""Head files: what they say, and what is refused, in one line that names file and field."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts.head_file import (
    HeadFacts,
    check_head,
    check_rows,
    head_facts,
    open_head,
    read_head,
    write_answer_head,
    write_head,
)
from actors.checkpoints.checkpoint import content_hash
from actors.data.task import TaskSource, open_task
from actors.families.clip.zero_shot_heads import task_heads
from actors.families.registry import inspect
from fusion.errors import InputError
from fusion.logits.head import AnswerHead

NAMES = ("flat", "steep")


@pytest.fixture
def base(tiny_pool):
    return inspect(str(tiny_pool.root / "base"), "pool.base")


def named(base) -> tuple[str, str]:
    return base.name, content_hash(base)


@pytest.fixture
def facts(base) -> HeadFacts:
    return HeadFacts("lines", "linear_probe", NAMES, content_hash(base), "ab12", 0.5, "rows")


@pytest.fixture
def head(facts, tmp_path) -> Path:
    write_head(tmp_path / "head.safetensors", torch.arange(32.0).view(2, 16), facts)
    return tmp_path / "head.safetensors"


def test_what_is_written_is_read(head, facts, base):
    assert head_facts(head) == (facts, (2, 16))
    assert torch.equal(read_head(head), torch.arange(32.0).view(2, 16))
    assert check_head(head, "tasks.lines.head", named(base), 16, NAMES) == facts
    plain = replace(facts, kind="zero_shot", C=None, rows=None)
    write_head(head, torch.zeros(2, 16, dtype=torch.float64), plain)
    assert head_facts(head) == (plain, (2, 16))
    assert read_head(head).dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "rows", "changes", "expected"),
    [
        (("steep", "flat"), 2, {}, "other order of classes: class 0 is 'flat', that of the task"),
        (("flat", "high"), 2, {}, "other classes: class 1 is 'steep', that of the task 'high'"),
        (("a", "b", "c"), 2, {}, "2 classes, width 16; the task has 3 classes, the base's"),
        (NAMES, 2, {"base": "c" * 64}, "made for another base: sha256 cccccccccccc…; pool.base is"),
        (NAMES, 3, {}, "2 class names for 3 rows"),
    ],
)
def test_a_head_of_another_task_or_base(names, rows, changes, expected, head, facts, base):
    write_head(head, torch.zeros(rows, 16), replace(facts, **changes))
    with pytest.raises(InputError) as caught:
        check_head(head, "tasks.lines.head", named(base), 16, names)
    assert str(caught.value).startswith(f"tasks.lines.head: {head}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_of_another_width_or_not_finite(head, facts, base):
    write_head(head, torch.zeros(2, 8), facts)
    with pytest.raises(InputError, match=r"2 classes, width 8; .* the base's embeddings width 16"):
        check_head(head, "x", named(base), 16, NAMES)
    write_head(head, torch.full((2, 16), torch.nan), facts)
    with pytest.raises(InputError, match="NaN or infinity; finite numbers needed"):
        check_head(head, "x", named(base), 16, NAMES)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"normalise": "false"}, "normalise: 'false'; 'true' needed"),
        ({"scale": "outside"}, "scale: 'outside'; 'inside' needed"),
        ({"kind": "guess"}, "its metadata: kind 'guess'"),
        ({"classnames": "{"}, "its metadata: "),
        ({"base": None}, "its metadata: 'base'"),
    ],
)
def test_metadata_that_will_not_do(change, expected, head, facts):
    told = {**facts.metadata(), **change}
    told = {name: value for name, value in told.items() if value is not None}
    save_file(load_file(head), head, metadata=told)
    with pytest.raises(InputError) as caught:
        head_facts(head, "tasks.lines.head")
    assert f"{head}: not a head that `sweeps train` wrote: {expected}" in str(caught.value)


def test_a_file_that_is_none(head, tmp_path):
    with pytest.raises(InputError, match="none: no such file"):
        head_facts(tmp_path / "none")
    save_file({"head": torch.zeros(4)}, head)
    with pytest.raises(InputError, match=r"head: F32 \[4\]; an F32 matrix \[C, D\] needed"):
        head_facts(head)
    head.write_bytes(head.read_bytes()[:20])
    with pytest.raises(InputError, match="not a head that `sweeps train` wrote"):
        head_facts(head)


def test_a_task_s_own_head_is_copied_to_the_cache(head, base, tiny_pool, tmp_path):
    data = str(tiny_pool.root / "data" / "lines")
    tasks = {
        "words": open_task(TaskSource("words", data)),
        "lines": open_task(TaskSource("lines", data, head=str(head))),
    }
    found = task_heads(base, tasks, tmp_path / "cache")
    assert list(found) == ["words", "lines"]
    assert all(path.parent == tmp_path / "cache" / "heads" for path in found.values())
    before = head.read_bytes()
    head.unlink()  # what happens to the file later changes nothing
    assert found["lines"].read_bytes() == before
    assert not torch.equal(read_head(found["words"]), read_head(found["lines"]))
    with pytest.raises(InputError, match=r"tasks\.lines\.head: .*no such file"):
        task_heads(base, tasks, tmp_path / "cache")


def test_names_survive_as_they_are(head, facts):
    names = ("Ünïcode, “quoted”", "a\nb")
    write_head(head, torch.zeros(2, 16), replace(facts, classnames=names))
    assert head_facts(head)[0].classnames == names
    assert json.loads(facts.metadata()["classnames"]) == list(NAMES)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 4), (2, 3)])
def test_two_classes_with_the_same_row(one, other):
    names = ["a", "b", "c", "d", "e"]
    matrix = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    check_rows(matrix, names, "task 'x'")
    matrix[other] = matrix[one] * (1 + 1e-7)
    said = f"task 'x': classes {names[one]!r} and {names[other]!r} have the same row"
    with pytest.raises(InputError, match=said):
        check_rows(matrix, names, "task 'x'")


def test_a_head_of_answers_is_read_with_its_objective(tmp_path):
    file, answers = tmp_path / "answers.safetensors", torch.tensor([[5, 1], [6, -1]])
    write_answer_head(file, answers)
    head = open_head(file)
    assert isinstance(head, AnswerHead)
    assert (head.classes, head.objective, head.blanks) == (2, "vocabulary", frozenset())
    assert torch.equal(read_head(file), answers.int())
    write_answer_head(file, answers, [3, 4], "answers")
    head = open_head(file)
    assert (head.objective, head.blanks) == ("answers", {3, 4})
    write_answer_head(file, answers, objective="other")
    with pytest.raises(
        InputError, match="objective: 'other'; vocabulary or answers or fusionbench allowed"
    ):
        open_head(file)
