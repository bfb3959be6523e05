"""Heads: the identity over fused logits, or the classifiers of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts.head_file import open_head
from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task, TaskSource, open_task
from actors.families.registry import family_in, inspect
from actors.shards.resident_model import ResidentModel
from tests.actors.families.bert.test_segments import library, texts
from tests.refusals import one_line
from tests.tiny_bert import Models, write_texts

CLASSES = ("good", "bad", "fine")


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., dict[str, Task]]:
    folder = write_texts(tmp_path / "data", CLASSES, 1)

    def opened(name: str, head: str | None = None) -> dict[str, Task]:
        return {name: open_task(TaskSource(name, str(folder), head=head), "text")}

    return opened


def opened(folder: Path) -> Checkpoint:
    return inspect(str(folder), "pool.base")


def test_logits_pass_through_the_identity(
    models: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    base = opened(models.write(tmp_path / "b"))
    head = open_head(family_in(base).heads(base, task("t"), tmp_path)["t"])
    output = ResidentModel(base).outputs(texts(models))
    assert torch.equal(head.logits(output), output)


def test_an_expert_s_own_classifier_gives_the_library_s_logits(
    models: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    """The encoder of the expert with the head that is read from its file: the whole expert."""
    base, expert = models.write(tmp_path / "b", encoder=True), models.write(tmp_path / "e", 1)
    named, family = task("t", str(expert)), family_in(opened(base))
    head = open_head(family.heads(opened(base), named, tmp_path)["t"])
    encoder = ResidentModel(opened(base))
    whole = ResidentModel(opened(expert))
    encoder.load((name, whole.arena[name]) for name in encoder.arena)
    given = texts(models)
    wanted = library(expert, given).logits
    torch.testing.assert_close(head.logits(encoder.outputs(given)), wanted)


def test_heads_of_other_weights_have_other_files(
    bert: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    base = opened(bert.write(tmp_path / "b", encoder=True))
    keys = set()
    for seed in (1, 2):
        named = task("t", str(bert.write(tmp_path / f"e{seed}", seed)))
        keys.add(family_in(base).head_fingerprints(base, named)["t"])
    assert len(keys) == 2


def test_a_task_without_a_classifier_is_refused(
    bert: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    base = opened(bert.write(tmp_path / "b", encoder=True))
    with one_line("no expert of its name, whose classifier would be its head", start="tasks.t: "):
        family_in(base).check_heads(base, task("t"))
    with one_line("no classifier", start="tasks.t.head: "):
        family_in(base).check_heads(base, task("t", str(base.folder)))


def test_a_head_beside_a_fused_classifier_is_refused(
    bert: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    base = opened(bert.write(tmp_path / "b"))
    with one_line("the classifier is part of the fused model: no head allowed", start="tasks.t: "):
        family_in(base).check_heads(base, task("t", str(base.folder)))


@pytest.mark.parametrize("fused", [True, False])
def test_classes_that_are_not_the_task_s_are_refused(
    fused: bool, bert: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    def check(folder: Path) -> None:
        base = folder if fused else bert.write(tmp_path / f"{folder.name}-base", encoder=True)
        named = task("t", None if fused else str(folder))
        family_in(opened(base)).check_heads(opened(base), named)

    with one_line("id2label: 2 classes; task 't' has 3"):
        check(bert.write(tmp_path / "two", classes=2))
    other = bert.write(tmp_path / "order", id2label={0: "bad", 1: "good", 2: "fine"})
    with one_line("id2label: class 0 is 'bad', of task 't' 'good': another order of the same"):
        check(other)
    part = bert.write(tmp_path / "part", id2label={0: "bad", 1: "good", 2: "ok"})
    with one_line("id2label: class 0 is 'bad', of task 't' 'good': another order of the same"):
        check(part)
    check(bert.write(tmp_path / "names", id2label={0: "x", 1: "y", 2: "z"}))


def test_the_inverse_temperature_scales_the_fused_classifier(
    models: Models, tmp_path: Path
) -> None:
    base = opened(models.write(tmp_path / "b"))
    whole = ResidentModel(base)
    given = texts(models)
    wanted = 3.0 * whole.outputs(given)
    scaled = family_in(base).tempered(base, whole.arena, 3.0)
    assert len(scaled) == 2
    whole.load({**whole.arena, **scaled}.items())
    torch.testing.assert_close(whole.outputs(given), wanted)
    assert family_in(base).tempered(base, whole.arena, 1.0) == {}


def test_a_classifier_that_is_not_finite_is_refused(
    bert: Models, task: Callable[..., dict[str, Task]], tmp_path: Path
) -> None:
    base, expert = bert.write(tmp_path / "b", encoder=True), bert.write(tmp_path / "e", 1)
    tensors = load_file(expert / "model.safetensors")
    (name,) = (
        name for name in tensors if name in ("classifier.weight", "classifier.out_proj.weight")
    )
    tensors[name][0, 0] = float("nan")
    save_file(tensors, expert / "model.safetensors", metadata={"format": "pt"})
    with one_line(f"tensor '{name}': 1 of ", "are NaN or Inf", start="tasks.t.head: "):
        family_in(opened(base)).heads(opened(base), task("t", str(expert)), tmp_path)
