"""Fine-tuning of image classifiers: starts, batch norm in training and frozen, runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import TaskData
from actors.experts.prepare_data import prepare_data
from actors.families.images.rows import images_of
from actors.families.registry import inspect, training_at
from actors.families.vision.fine_tune import FineTuning
from actors.families.vision.fresh_classifier import write_start
from fusion.errors import InputError
from tests.actors.families.vision.models import CLASSES, Models, write_task

SHORT: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "warmup": 0.0}


def opened(folder: Path) -> Checkpoint:
    return inspect(str(folder), "base")


def data_of(root: Path, start: Path) -> TaskData:
    """The drawn task, prepared for a start."""
    task = open_task(TaskSource("task", str(root / "task")), "image")
    roles = ("fit", "select", "report")
    return prepare_data(opened(start), {"task": task}, Splits(), roles, root)["task"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_task(tmp_path / "task", 0, (48, 24))
    return tmp_path


def tuned(root: Path, kind: str, name: str, **options: Any) -> Path:
    """A fine-tuned classifier; the start is made on first use."""
    start = root / kind
    if not start.exists():
        Models(kind).write(start)
    given = {key: options.pop(key) for key in ("state", "advance") if key in options}
    chosen = FineTuning(**{**SHORT, **options})
    return training_at(start).fine_tune(start, data_of(root, start), root / name, chosen, **given)


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def correct(root: Path, folder: Path) -> float:
    """Accuracy on report, by `transformers`."""
    from transformers import AutoModelForImageClassification

    model, about = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(about[each] for each in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tuple(model.config.id2label.values()) == CLASSES
    images, labels = images_of(data_of(root, folder).rows["report"])
    pixels = (images.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        found = model.eval()(pixel_values=pixels).logits.argmax(1)
    return float((found == labels).float().mean())


@pytest.mark.parametrize("kind", ["vit", "basic"])
def test_a_classifier_learns(kind: str, root: Path) -> None:
    out = tuned(root, kind, "out", epochs=20, ema=0.5)
    first = correct(root, root / kind)
    assert correct(root, out) > first + 0.2
    assert correct(root, root / "out-ema") > first + 0.2
    about = json.loads((out / "preprocessor_config.json").read_text())
    assert about == Models(kind).processor()


def test_batch_norm_follows_the_rows_or_is_frozen(root: Path) -> None:
    first = tensors(Models("basic").write(root / "basic"))
    plain, frozen = (
        tensors(tuned(root, "basic", "plain")),
        tensors(tuned(root, "basic", "frozen", frozen_batchnorm=True)),
    )
    running = [name for name in first if "running" in name or "num_batches" in name]
    assert running
    for name in first:
        stays = torch.equal(frozen[name], first[name])
        assert stays == (name in running), name
        assert not torch.equal(plain[name], first[name]), name
    counter = next(name for name in running if "num_batches" in name)
    rows = len(images_of(data_of(root, root / "basic").rows["fit"])[1])
    assert plain[counter] - first[counter] == round(3 * rows / 8)  # steps


def test_frozen_batch_norm_is_refused_of_a_vit(root: Path) -> None:
    with pytest.raises(InputError, match=r"frozen_batchnorm: True: the model in .* has no batch"):
        tuned(root, "vit", "out", frozen_batchnorm=True)
    assert not (root / "out").exists()


def test_a_killed_run_goes_on_to_the_same_bits(root: Path) -> None:
    whole = tensors(tuned(root, "basic", "whole", mixup=0.2, swa=0.5))

    class Killed(Exception):
        pass

    def kill(step: int, total: int, loss: float) -> None:
        if step == 14:
            raise Killed

    again: dict[str, Any] = {"mixup": 0.2, "swa": 0.5, "state": root / "state.pt"}
    with pytest.raises(Killed):
        tuned(root, "basic", "again", advance=kill, **again)
    found = tensors(tuned(root, "basic", "again", **again))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    averaged = [tensors(root / f"{name}-swa") for name in ("whole", "again")]
    assert all(torch.equal(averaged[1][name], value) for name, value in averaged[0].items())


def test_a_start_keeps_the_classifier_of_the_task_s_classes(root: Path) -> None:
    base = opened(Models("basic").write(root / "base"))
    task = open_task(TaskSource("task", str(root / "task")), "image")
    write_start(base, task, 0, root / "start")
    start = opened(root / "start")
    assert start.fields["labels"] == CLASSES
    held = dict(read(start))
    assert all(torch.equal(held[name], value) for name, value in read(base))


@pytest.mark.parametrize("kind", ["vit", "bottleneck"])
def test_a_start_of_other_classes_gets_a_fresh_classifier(kind: str, root: Path) -> None:
    base = opened(Models(kind).write(root / "base", classes=("a", "b", "c", "d")))
    task = open_task(TaskSource("task", str(root / "task")), "image")
    for seed in (0, 0, 1):
        write_start(base, task, seed, root / f"start_{len(list(root.glob('start_*')))}")
    starts = [opened(root / f"start_{at}") for at in range(3)]
    assert starts[0].fields["labels"] == CLASSES
    held, same, other = (dict(read(start)) for start in starts)
    head = [name for name in held if name.startswith("classifier")]
    for name, value in read(base):
        if name not in head:
            assert torch.equal(held[name], value)
    weight, bias = (next(n for n in head if n.endswith(end)) for end in ("weight", "bias"))
    assert held[weight].shape == (3, base.tensors[weight].shape[1])
    assert 0.01 < float(held[weight].std()) < 0.03
    assert not held[bias].any()
    assert torch.equal(same[weight], held[weight])
    assert not torch.equal(other[weight], held[weight])
