"""Adapters that fine-tuning of a T5 makes: what is trained and written, and how others read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.data.text.opened_rows import open_role, outputs_of_role
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.families.registry import family_in, inspect, training_at
from actors.families.t5.fine_tune import answers_of, likelihoods, loaded
from actors.pool.pool import open_pool, task_vectors
from actors.pool.vectors_low_rank import factor_vectors, opened_factors
from tests.actors.families.t5.test_fine_tune import World

LORA: dict[str, Any] = {"rank": 3, "alpha": 6, "dropout": 0.2}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World("v1.1", tmp_path)


def experts_of(world: World, out: Path, *, factored: bool = False) -> LocalExperts:
    pool = open_pool(str(world.base), {"colour": str(out)})
    vectors = opened_factors(factor_vectors(pool)) if factored else None
    data, cache = {"colour": world.data}, EmbeddingCache(out, {})
    return local_experts(pool, data, cache, results="float32", vectors=vectors)


def scores(experts: LocalExperts) -> Tensor:
    return experts.logits(Recipe("simple_average"), "select")["colour"]


def test_it_learns_and_writes_an_adapter_of_q_and_v(world: World) -> None:
    losses: list[float] = []
    out = world.tuned(
        "out", epochs=8, learning_rate=3e-2, lora=LORA, ema=0.5, swa=0.5,
        advance=lambda step, total, loss: losses.append(loss),
    )  # fmt: skip
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    for kind in ("", "-ema", "-swa"):
        files = {file.name for file in out.with_name(f"out{kind}").iterdir()}
        assert files == {"adapter_config.json", "adapter_model.safetensors"}
    found = load_file(out / "adapter_model.safetensors")
    base = inspect(str(world.base), "base")
    adapted = {n for n in base.tensors if n.endswith((".q.weight", ".v.weight"))}
    names = {f"base_model.model.{name.removesuffix('.weight')}" for name in adapted}
    assert found.keys() == {f"{n}.lora_{part}.weight" for n in names for part in "AB"}
    assert all(tensor.any() for name, tensor in found.items() if "decoder" not in name)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 6, ["q", "v"])
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert config["lora_dropout"] == 0.2


def test_its_task_vectors_are_the_scaled_products(world: World) -> None:
    out = world.tuned("out", learning_rate=3e-2, lora=LORA)
    found = load_file(out / "adapter_model.safetensors")
    vectors = task_vectors(open_pool(str(world.base), {"colour": str(out)}))
    for name, delta in vectors.deltas.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in found:
            down, up = (found[f"{module}.lora_{part}.weight"].double() for part in "AB")
            torch.testing.assert_close(delta[0].double(), 6 / 3 * up @ down, rtol=1e-5, atol=1e-7)
        else:
            assert not delta.any()


def test_a_run_without_a_step_of_any_size_is_the_base(world: World) -> None:
    """B = 0 at the start: no task vector, and the base's scores."""
    out = world.tuned("out", learning_rate=1e-30, lora=LORA)
    pool = open_pool(str(world.base), {"colour": str(out)})
    assert max(float(delta.abs().max()) for delta in task_vectors(pool).deltas.values()) < 1e-25
    torch.testing.assert_close(
        scores(experts_of(world, out)), scores(experts_of(world, world.base))
    )


@pytest.mark.parametrize("factored", [False, True], ids=["dense", "factored"])
def test_as_an_expert_it_is_the_model_that_was_trained(world: World, factored: bool) -> None:
    """The unfinished model of a longer run, after as many steps, has the expert's scores."""
    total: list[int] = []
    given: dict[str, Any] = {"learning_rate": 3e-2, "lora": LORA}
    out = world.tuned("out", **given, advance=lambda step, steps, loss: total.append(steps))
    seen: dict[float, Tensor] = {}
    rows = world.data.rows["select"]
    longer = 2 * total[0]

    def judge(share: float, logits) -> None:
        seen[share] = logits(rows)

    world.tuned("long", **given, epochs=4, stops=[0.5], judge=judge,
                advance=lambda step, steps, loss: total.append(steps))  # fmt: skip
    assert total[-1] == longer
    wanted = seen[0.5]
    found = scores(experts_of(world, out, factored=factored))[:, -wanted.shape[1] :]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    plain = scores(experts_of(world, world.base))[:, -wanted.shape[1] :]
    assert not torch.allclose(plain, wanted, rtol=1e-2, atol=1e-2)


def test_peft_reads_it_as_we_do(world: World) -> None:
    peft = pytest.importorskip("peft")
    out = world.tuned("out", learning_rate=3e-2, lora={**LORA, "targets": ["q", "v", "wo"]})
    base = inspect(str(world.base), "base")
    model = peft.PeftModel.from_pretrained(loaded(base), str(out)).eval()
    inputs, rows = family_in(base).inputs(base), world.data.rows["select"]
    answers = answers_of(open_role(inputs, rows))

    def seen(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return likelihoods(model.get_base_model(), batch, answers)

    wanted = outputs_of_role(inputs, rows, seen)
    found = scores(experts_of(world, out))[:, -wanted.shape[1] :]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_state_holds_the_factors_alone(world: World) -> None:
    state = world.root / "state.pt"

    def stop(step: int, total: int, loss: float) -> None:
        if step == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.tuned("out", epochs=4, lora=LORA, ema=0.9, advance=stop, state=state)
    found = torch.load(state, weights_only=True)
    base = inspect(str(world.base), "base")
    sizes = [sum(base.tensors[n].shape) * 3 for n in base.tensors
             if n.endswith((".q.weight", ".v.weight"))]  # fmt: skip
    assert sum(value.numel() for value in found["weights"].values()) == sum(sizes)
    assert sum(v.numel() for v in found["averages"]["ema"]["shadow"].values()) == sum(sizes)
    assert len(found["optimiser"]["state"]) == 2 * len(sizes)


def test_the_layers_that_can_be_adapted_are_the_linear_ones_of_blocks(tmp_path: Path) -> None:
    for kind, inner in (("v1.1", {"wi_0", "wi_1"}), ("v1.0", {"wi"})):
        world = World(kind, tmp_path / kind)
        found = training_at(world.base).adaptable(inspect(str(world.base), "base"))
        assert set(found) == {"q", "k", "v", "o", "wo", *inner}
