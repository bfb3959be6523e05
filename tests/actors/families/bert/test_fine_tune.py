"""Fine-tuning of text classifiers: the start, what a step does, and runs that are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, content_hash
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import Rows, TaskData
from actors.experts.prepare_data import prepare_data
from actors.families.bert.architecture import canonical
from actors.families.bert.fine_tune import FineTuning, fine_tune
from actors.families.bert.fresh_classifier import check_encoder, write_start
from actors.families.registry import family_in, inspect
from actors.training.optimizer_loop import cpu_threads, shuffled_batches
from actors.training.random_numbers import seeded
from tests.refusals import one_line
from tests.tiny_bert import Models, write_texts

CLASSES = ("good", "bad", "fine")
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


class World:
    """An encoder, a task, and the start of the task."""

    def __init__(self, models: Models, root: Path) -> None:
        self.models, self.root = models, root
        self.base = opened(models.write(root / "base", encoder=True))
        source = TaskSource("t", str(write_texts(root / "data", CLASSES, 1)))
        self.task = open_task(source, "text")
        write_start(self.base, self.task, 7, root / "start")
        self.start = root / "start"
        roles = ("fit", "select")
        tasks = {"t": self.task}
        start = opened(self.start)
        self.data: TaskData = prepare_data(start, tasks, Splits(), roles, root / "cache")["t"]

    def tuned(self, name: str, **given: Any) -> Path:
        own = {key: given.pop(key) for key in list(given) if key in FineTuning.__annotations__}
        options = FineTuning(**{**QUICK, **own})
        return fine_tune(self.start, self.data, self.root / name, options, **given)


@pytest.fixture
def world(models: Models, tmp_path: Path) -> World:
    return World(models, tmp_path)


@pytest.fixture
def one(bert: Models, tmp_path: Path) -> World:
    return World(bert, tmp_path)


def opened(folder: Path) -> Checkpoint:
    return inspect(str(folder), "start")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        canonical(name): value for name, value in load_file(folder / "model.safetensors").items()
    }


def test_a_start_is_the_base_with_a_classifier_that_is_drawn(world: World, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    start, base = tensors(world.start), tensors(world.base.folder)
    for name in world.base.tensors:
        assert torch.equal(start[name], base[name])
    fresh = sorted(start.keys() - world.base.tensors.keys())
    assert "classifier.weight" in fresh or "classifier.out_proj.weight" in fresh
    drawn = torch.cat([start[name].flatten() for name in fresh if name.endswith("weight")])
    assert 0.01 < float(drawn.std()) < 0.03  # initializer_range: 0.02
    assert not any(bool(start[name].any()) for name in fresh if name.endswith("bias"))
    model = AutoModelForSequenceClassification.from_pretrained(world.start)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert len(AutoTokenizer.from_pretrained(world.start)) == world.models.vocabulary
    state = torch.get_rng_state()
    write_start(world.base, world.task, 7, tmp_path / "same")
    write_start(world.base, world.task, 8, tmp_path / "other")
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(tmp_path / "same") == weights(world.start) != weights(tmp_path / "other")


def test_a_base_with_a_classifier_is_refused(bert: Models, tmp_path: Path) -> None:
    whole = bert.write(tmp_path / "whole")
    with one_line("has a classifier of 3 classes; each task gets a classifier of its own"):
        check_encoder(opened(whole))
    check_encoder(opened(bert.write(tmp_path / "encoder", encoder=True)))


def plain_run(world: World, options: FineTuning) -> list[dict[str, Tensor]]:
    """The weights after each step of fine-tuning as it is described, written once more."""
    from transformers import AutoModelForSequenceClassification

    rows = family_in(opened(world.start)).inputs(opened(world.start))
    given = world.data.rows["fit"]
    file = rows.open(given.file)
    at = torch.from_numpy(given.indices)
    model = AutoModelForSequenceClassification.from_pretrained(world.start).train()
    named = list(model.named_parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=options.learning_rate, eps=1e-6, fused=True,
    )  # fmt: skip
    steps, seen = round(options.epochs * len(at) / options.batch_size), []
    warm = max(1, round(0.1 * steps))
    for step, chosen in enumerate(shuffled_batches(len(at), options.batch_size, steps, 0)):
        for group in optimiser.param_groups:
            rise, fall = (step + 1) / warm, (steps - step) / (steps - warm)
            group["lr"] = options.learning_rate * (rise if step < warm else fall)
        batch = rows.collate([file.take(at[chosen])])
        with seeded(0, step + 1, "dropout"):
            out = model(input_ids=batch["ids"], attention_mask=batch["mask"].long())
        torch.nn.functional.cross_entropy(out.logits, file.labels[at[chosen]]).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seen.append({name: value.detach().clone() for name, value in named})
    return seen


def test_steps_and_averages_are_what_they_are_said_to_be(world: World) -> None:
    with cpu_threads(1):
        seen = plain_run(world, FineTuning(**QUICK))
    out = world.tuned("run", ema=0.5, swa=0.5)
    last, start = load_file(out / "model.safetensors"), load_file(world.start / "model.safetensors")
    assert seen[-1].keys() == last.keys()
    swa = load_file(world.root / "run-swa" / "model.safetensors")
    half = seen[len(seen) // 2 :]
    for name, value in last.items():
        torch.testing.assert_close(value, seen[-1][name], rtol=1e-6, atol=1e-7)
        mean = torch.stack([each[name].double() for each in half]).mean(0)
        torch.testing.assert_close(swa[name].double(), mean, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(start[name], value) for name, value in last.items())
    assert weights(world.root / "run-ema") not in (weights(out), weights(world.start))


def test_an_ingredient_is_a_hugging_face_folder_in_a_pool_over_the_start(world: World) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = world.tuned("one")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: at for at, name in enumerate(CLASSES)}
    assert len(AutoTokenizer.from_pretrained(out)) == world.models.vocabulary
    family = family_in(opened(out))
    family.check_expert(opened(world.start), opened(out))
    family.check_expert(world.base, opened(out))


def test_same_arguments_same_bits_and_the_seed_decides_dropout(one: World) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    first, again = one.tuned("first"), one.tuned("again")
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(first) == weights(again) != weights(one.tuned("other", seed=1))
    # One batch of all rows: their order decides little, dropout's masks are the seed's.
    whole = {"batch_size": 1000, "epochs": 1, "schedule": "cosine"}
    assert content_hash(opened(one.tuned("a", **whole))) != content_hash(
        opened(one.tuned("b", **whole, seed=1))
    )


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(world: World) -> None:
    options = {"epochs": 4, "ema": 0.9, "swa": 0.5, "label_smoothing": 0.1}
    whole = world.tuned("whole", **options)
    state, steps, scores = world.root / "state.pt", [], []

    def stop_at(last: int) -> Any:
        def advance(step: int, total: int, loss: float) -> None:
            steps.append((step, total))
            if step == last:
                raise Killed

        return advance

    def judge(share: float, logits: Any) -> None:
        z = logits(world.data.rows["select"])
        assert z.shape == (len(world.data.rows["select"].indices), 3)
        scores.append((share, z))

    given: dict[str, Any] = {**options, "state": state, "judge": judge}
    for last in (4, 12):  # of 16: after the states of steps 2 and 11
        with pytest.raises(Killed):
            world.tuned("out", advance=stop_at(last), **given)
        assert state.exists()
        assert not (world.root / "out").exists()
    out = world.tuned("out", advance=stop_at(0), **given)
    assert {total for _, total in steps} == {16}
    assert [step for step, _ in steps] == [*range(1, 5), *range(3, 13), *range(12, 17)]
    assert [share for share, _ in scores] == [1 / 9, 1 / 9, 1 / 3, 2 / 3, 2 / 3]
    assert torch.equal(scores[0][1], scores[1][1])  # looked at again: no dropout there
    assert not state.exists()
    for kind in ("", "-ema", "-swa"):
        assert weights(whole.with_name(f"whole{kind}")) == weights(out.with_name(f"out{kind}"))


def test_logits_on_the_way_are_those_of_the_model_and_in_the_rows_order(one: World) -> None:
    """The last judged state is that of the last step but one; a run of that length ends there."""
    found = []
    rows: Rows = one.data.rows["select"]
    one.tuned("run", learning_rate=1e-30, judge=lambda _, logits: found.append(logits(rows)))
    start = opened(one.start)
    inputs = family_in(start).inputs(start)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(one.start).eval()
    for number, row in enumerate(rows.indices):  # each row alone: no padding
        batch = inputs.collate([inputs.open(rows.file).take(torch.tensor([row]))])
        with torch.no_grad():
            wanted = model(input_ids=batch["ids"], attention_mask=batch["mask"].long()).logits
        torch.testing.assert_close(found[0][number : number + 1], wanted, rtol=1e-4, atol=1e-5)
