"""Fine-tuning of a T5: the loss, what is written, and runs that are killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.registry import family_in, inspect, training_at
from actors.families.t5.fine_tune import FineTuning, fine_tune, loaded
from actors.pool.pool import open_pool
from tests.actors.families.t5.models import KINDS, write_pool

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 6, "learning_rate": 3e-3}


class World:
    """A base and a task."""

    def __init__(self, kind: str, root: Path) -> None:
        self.root = root
        self.base = write_pool(root, kind) / "base"
        task = open_task(TaskSource("colour", str(root / "data" / "colour")), "text")
        tasks, roles = {"colour": task}, ("fit", "select")
        base = inspect(str(self.base), "base")
        self.data = prepare_data(base, tasks, Splits(), roles, root / "cache")["colour"]

    def tuned(self, name: str, **given: Any) -> Path:
        own = {key: given.pop(key) for key in list(given) if key in FineTuning.__annotations__}
        options = FineTuning(**{**QUICK, **own})
        return fine_tune(self.base, self.data, self.root / name, options, **given)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path)


@pytest.fixture
def gated(tmp_path: Path) -> World:
    return World("v1.1", tmp_path)


def weights(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def test_training_lowers_the_loss_and_writes_a_model_of_the_same_ties(world: World) -> None:
    losses: list[float] = []
    out = world.tuned(
        "out", epochs=8, advance=lambda step, total, loss: losses.append(loss), swa=0.5
    )
    assert sum(losses[-4:]) < sum(losses[:4])
    base, made = inspect(str(world.base), "base"), inspect(str(out), "out")
    assert made.fields == base.fields
    assert ("lm_head.weight" in made.tensors) == ("lm_head.weight" in base.tensors)
    family_in(base).check_expert(base, made)
    assert (
        json.loads((out / "config.json").read_text())["tie_word_embeddings"] == base.fields["tied"]
    )
    if not base.fields["tied"]:
        found = load_file(out / "model.safetensors")
        assert not torch.equal(found["shared.weight"], found["lm_head.weight"])
    assert weights(out) != weights(world.root / "out-swa")


def test_the_loss_of_the_first_step_is_the_library_s(gated: World) -> None:
    """Teacher forcing on the answer's tokens and its end, with an explicit mask, no dropout."""
    model = loaded(inspect(str(gated.base), "base"))
    file = gated.base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dropout_rate": 0.0}))
    losses: list[float] = []
    gated.tuned("out", batch_size=1000, advance=lambda step, total, loss: losses.append(loss))
    base = inspect(str(gated.base), "base")
    inputs, rows = family_in(base).inputs(base), gated.data.rows["fit"]
    opened = inputs.open(rows.file)
    at = torch.from_numpy(rows.indices)
    batch = inputs.collate([opened.take(at)])
    answers = opened.take(at[:1])["answers"][0].long()
    answers[answers < 0] = -100
    with torch.no_grad():
        wanted = model.eval()(
            input_ids=batch["ids"],
            attention_mask=batch["mask"].long(),
            labels=answers[opened.labels[at]],
        ).loss
    assert losses[0] == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.3}], ids=["all", "lora"])
def test_a_killed_run_goes_on_to_the_same_bits(world: World, lora: dict | None) -> None:
    options: dict[str, Any] = {"epochs": 4, "optimiser": "adafactor", "ema": 0.9, "lora": lora}
    whole = world.tuned("whole", **options)
    assert weights(whole) != weights(world.tuned("other", **options, seed=1))
    state = world.root / "state.pt"

    def stop(step: int, total: int, loss: float) -> None:
        if step == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.tuned("out", advance=stop, state=state, **options)
    assert state.exists()
    out = world.tuned("out", state=state, **options)
    for kind in ("", "-ema"):
        assert weights(whole.with_name(f"whole{kind}")) == weights(out.with_name(f"out{kind}"))


def test_it_is_judged_as_a_sweep_scores_it(world: World) -> None:
    """The log-likelihoods of the unfinished model are those of the resident one."""
    found: list[torch.Tensor] = []
    rows = world.data.rows["select"]
    out = world.tuned("out", learning_rate=1e-30, judge=lambda _, z: found.append(z(rows)))
    pool = open_pool(str(world.base), {"colour": str(out)})
    experts = local_experts(
        pool, {"colour": world.data}, EmbeddingCache(out, {}), results="float32"
    )
    wanted = experts.logits(Recipe("simple_average"), "select")["colour"]
    torch.testing.assert_close(found[0], wanted[:, -found[0].shape[1] :], rtol=1e-4, atol=1e-4)


def test_its_hyper_parameters_are_its_own(gated: World) -> None:
    training = training_at(gated.base)
    assert training.options is FineTuning
    assert training.start is None
