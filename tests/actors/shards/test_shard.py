"""A shard against transformers' own tower in float64, and against itself without its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.families.clip.architecture import PROJECTION
from actors.shards.shard import Batch, Shard, Weights
from fusion.errors import InputError
from fusion.task_vectors.coding import mix
from fusion.task_vectors.sparsify import Trim
from tests.actors.conftest import Tiny
from tests.actors.laws.cases import KINDS
from tests.actors.shards.world import EXACT, Oracle, World, make_world

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def projected(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny, tmp_path_factory.mktemp("projected"), projected=True)


def weights(coding: Tensor, trim: Trim | None = None, key: str = "") -> Weights:
    return Weights(key, coding=coding, trim=trim or Trim())


ROWS = {"t0": [3, 0], "t2": [1, 1, 5], "t1": [4]}


# ---------------------------------------------------------------- against transformers, in float64


@pytest.mark.parametrize("fused", [False, True], ids=["projection kept", "projection fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_transformers(
    kind: str, fused: bool, world: World, projected: World
) -> None:
    here = projected if fused else world
    assert (PROJECTION in here.vectors.groups) == fused
    oracle, shard, batch = Oracle(here), here.shard(), here.batch(**ROWS)
    coding = here.coding(kind, batch.size)
    leaf = coding.clone().requires_grad_()
    embedded = oracle.embed(oracle.merged(leaf), here.pixels(batch))
    found = shard.run_coded(batch, weights(coding))["output"]
    torch.testing.assert_close(found, embedded.detach(), **EXACT)
    wanted = oracle.losses(embedded, batch)
    (gradient,) = torch.autograd.grad(torch.stack(list(wanted.values())).sum(), leaf)
    (losses, _), columns, carry = shard.finish(batch, weights(coding), batch)
    assert list(losses) == list(ROWS)
    for task, loss in wanted.items():
        assert losses[task] == pytest.approx(loss.item(), rel=1e-10)
    assert shard.names() == here.vectors.groups  # the columns' order
    total = columns if coding.shape[2] > 1 else columns.sum(2, keepdim=True)
    torch.testing.assert_close(total, gradient, **EXACT)
    for name, column in zip(shard.names(), columns.unbind(2), strict=True):
        # Every tensor has a say, but for a shift of all keys alike, which softmax does not see.
        assert (float(column.abs().max()) < 1e-12) == name.endswith("k_proj.bias"), name
    assert carry == {}  # pixels have no gradient


def test_labelled_losses_and_their_gradients(world: World) -> None:
    shard, plain = world.shard(), world.batch(**ROWS)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 2, (plain.size,), generator=generator)
    coding = world.coding("layer mean", plain.size)

    def found(beta: float, at: Tensor = coding) -> tuple[float, float, Tensor]:
        (losses, tilt), columns, _ = shard.finish(
            batch := replace(plain, labels=labels, beta=beta), weights(at), batch
        )
        return sum(losses.values()), tilt, columns

    z = shard.run_coded(plain, weights(coding))["output"]
    wanted, start = 0.0, 0
    for task, _, rows in plain.parts:
        here = slice(start, start + len(rows))
        scaled = 1.7 * shard.heads[task].to(z.dtype).logits(z[here])
        wanted += -scaled.log_softmax(1)[range(len(rows)), labels[here]].mean().item()
        start += len(rows)
    loss, tilt, columns = found(1.7)
    assert loss == pytest.approx(wanted, rel=1e-10)
    step = 1e-5
    assert tilt == pytest.approx((found(1.7 + step)[0] - found(1.7 - step)[0]) / (2 * step), 1e-6)
    direction = torch.randn(coding.shape, generator=generator, dtype=torch.float64)
    slope = (
        found(1.7, coding + step * direction)[0] - found(1.7, coding - step * direction)[0]
    ) / (2 * step)
    assert slope == pytest.approx(float((columns * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: str, world: World) -> None:
    shard, batch = world.shard(), world.batch(**ROWS)
    coding, step = world.coding(kind, batch.size), 1e-5

    def loss(at: Tensor) -> float:
        return sum(shard.finish(batch, weights(at), batch)[0][0].values())

    columns = shard.finish(batch, weights(coding), batch)[1]
    gradient = columns if coding.shape[2] > 1 else columns.sum(2, keepdim=True)
    generator = torch.Generator().manual_seed(4)
    chosen = torch.randperm(coding.numel(), generator=generator)[:6].tolist()
    directions = [torch.eye(coding.numel(), dtype=torch.float64)[at] for at in chosen]
    directions.append(torch.randn(coding.numel(), generator=generator, dtype=torch.float64))
    for direction in directions:
        move = step * direction.view_as(coding)
        slope = (loss(coding + move) - loss(coding - move)) / (2 * step)
        wanted = float((gradient.view(-1) * direction).sum())
        assert slope == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_gradients_of_one_model_are_dot_products(projected: World) -> None:
    """∂L/∂λ_tk = ⟨∂L/∂θ_k, τ_tk⟩, with ∂L/∂θ by plain autograd through transformers' model."""
    oracle, batch = Oracle(projected), projected.batch(**ROWS)
    coding = projected.coding("layer mean", 1)
    theta = {n: t.detach()[0].clone().requires_grad_() for n, t in oracle.merged(coding).items()}
    embedded = oracle.embed({n: t[None] for n, t in theta.items()}, projected.pixels(batch))
    torch.stack(list(oracle.losses(embedded, batch).values())).sum().backward()
    deltas = oracle.vectors.deltas
    wanted = torch.stack(
        [(theta[n].grad * deltas[n]).flatten(1).sum(1) for n in projected.vectors.groups],
        dim=1,
    )
    found = projected.shard().finish(batch, weights(coding), batch)[1]
    torch.testing.assert_close(found[0], wanted, **EXACT)


@pytest.mark.parametrize("kind", ["task mean", "layer mean"])
def test_columns_reach_the_tensors_of_their_names(kind: str, world: World) -> None:
    """In float32: `fusion.task_vectors.coding.mix` and transformers equal the resident model."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    batch = world.batch(**ROWS)
    coding = world.coding(kind, 1)
    if kind.startswith("layer"):  # distinct: 0.1 … 0.6
        coding = torch.linspace(0.1, 0.6, coding.numel()).view_as(coding).double()
    merged = mix(world.vectors, coding)
    model = CLIPVisionModel(CLIPVisionConfig(**world.vision)).eval()
    model.load_state_dict({name: t for name, t in merged.items() if name != PROJECTION})
    shard = world.shard(dtype=torch.float32)
    images = shard.resident.inputs.preprocess.normalise(world.pixels(batch))
    with torch.no_grad():
        wanted = model(images).pooler_output @ shard.resident.arena[PROJECTION].T
    found = shard.run_coded(batch, weights(coding.float()))["output"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    resident = shard.run(batch, weights(coding, key="k"))["output"]
    torch.testing.assert_close(resident, wanted, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_hot_codings_is_each_sample_through_its_expert(world: World) -> None:
    shard, batch = world.shard(), world.batch(t0=[0, 1, 2])
    found = shard.run_coded(batch, weights(torch.eye(3).double().view(3, 3, 1)))["output"]
    for at in range(3):
        one = torch.zeros(1, 3, 1)
        one[0, at] = 1
        alone = shard.run(batch, weights(one, key=f"expert {at}"))["output"]
        torch.testing.assert_close(found[at], alone[at], **EXACT)
    zero = shard.run_coded(batch, weights(torch.zeros(1, 3, 1)))["output"]
    base = world.shard().run(batch, weights(torch.zeros(1, 3, 1), key="base"))["output"]
    torch.testing.assert_close(zero, base, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype, world: World) -> None:
    exact, low, batch = world.shard(), world.shard(dtype=dtype), world.batch(**ROWS)
    coding = world.coding("layer sample", batch.size)
    wanted = exact.run_coded(batch, weights(coding))["output"]
    found = low.run_coded(batch, weights(coding.float()))["output"]
    assert found.dtype == dtype
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < 16 * torch.finfo(dtype).eps
    (losses, _), columns, _ = low.finish(batch, weights(coding.float()), batch)
    precise = exact.finish(batch, weights(coding), batch)
    for task, loss in losses.items():
        assert loss == pytest.approx(precise[0][0][task], rel=0.1)
    assert columns.dtype == torch.float32  # of the coding, whatever is computed in
    similar = torch.cosine_similarity(columns.double().flatten(), precise[1].flatten(), dim=0)
    assert similar > 0.95


# -------------------------------------------------------------- what is kept between calls is time


def two_shards(world: World, contexts: int) -> tuple[Shard, Shard]:
    kind = torch.float32
    return world.shard((0, 2), kind, contexts), world.shard((2, 4), kind, contexts)


def trained(
    first: Shard, last: Shard, batch: Batch, given: Weights, forget: Callable[[], object]
) -> tuple[Any, ...]:
    """Everything that a forward and backward pass over two shards gives."""
    hidden = first.forward("k", batch, given)
    (losses, _), late, back = last.finish(hidden, given, batch)
    forget()
    early, none = first.backward("k", batch, given, back)
    return hidden["hidden"], losses, late, back["hidden"], early, none


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trim", [Trim(), Trim(0.5, dtype="bfloat16")], ids=["whole", "trimmed"])
def test_backward_runs_forward_again_to_the_bit(kind: str, trim: Trim, world: World) -> None:
    batch = world.batch(**ROWS)
    given = weights(world.coding(kind, batch.size).float(), trim)
    other = weights(world.coding("task mean", 1, seed=8).float())
    first, last = two_shards(world, contexts=1)

    def nothing() -> None:
        assert list(first.contexts) == ["k"]

    def evict() -> None:
        first.forward("another", batch, other)
        assert list(first.contexts) == ["another"]

    wanted = trained(first, last, batch, given, nothing)
    assert not first.contexts
    assert wanted[4].any()
    evicted = trained(first, last, batch, given, evict)
    none, alike = two_shards(world, contexts=0)
    recomputed = trained(none, alike, batch, given, lambda: None)
    assert not none.contexts
    for found in (evicted, recomputed):
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    # A shard that has only just come to life knows enough.
    fresh, _ = two_shards(world, contexts=1)
    early, _ = fresh.backward("k", batch, given, {"hidden": wanted[3]})
    assert torch.equal(early, wanted[4])


@pytest.mark.parametrize("contexts", [0, 1, 2])
def test_interleaved_passes_do_not_disturb_each_other(contexts: int, world: World) -> None:
    batches = [world.batch(t0=[0, 1, 2]), world.batch(t1=[5, 3], t2=[0])]
    given = [
        weights(world.coding("layer sample", 3).float()),
        weights(world.coding("task mean", 3, seed=2).float(), Trim(0.3)),
    ]
    alone = []
    for batch, each in zip(batches, given, strict=True):
        first, last = two_shards(world, contexts=1)
        alone.append(trained(first, last, batch, each, lambda: None))
    first, last = two_shards(world, contexts)
    hidden = [first.forward(f"{i}", batches[i], given[i]) for i in range(2)]
    late = {i: last.finish(hidden[i], given[i], batches[i]) for i in (1, 0)}
    early = {i: first.backward(f"{i}", batches[i], given[i], late[i][2])[0] for i in (0, 1)}
    for i in range(2):
        (losses, _), columns, back = late[i]
        found = (hidden[i]["hidden"], losses, columns, back["hidden"], early[i])
        for ours, theirs in zip(found, alone[i], strict=False):
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


def test_another_filling_is_filled_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, batch = world.shard(dtype=torch.float32), world.batch(t0=[0, 1])
    merges = []
    plain = shard.merge
    monkeypatch.setattr(shard, "merge", lambda w, *rest: (merges.append(w.key), plain(w, *rest))[1])
    first = weights(world.coding("layer mean", 1), key="first")
    second = Weights("second", "task_arithmetic", {"scale": 0.7})
    wanted = {w.key: shard.run(batch, w)["output"] for w in (first, second)}
    assert not torch.equal(wanted["first"], wanted["second"])
    for each in (second, second, first, first, second):
        assert torch.equal(shard.run(batch, each)["output"], wanted[each.key])
    assert merges == ["first", "second", "first", "second"]


def test_a_failed_filling_is_not_taken_for_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, batch = world.shard(dtype=torch.float32), world.batch(t0=[0, 1])
    good = weights(world.coding("layer mean", 1), key="good")
    wanted = shard.run(batch, good)["output"]

    def halfway(*given: Any) -> None:
        shard.resident.arena["post_layernorm.weight"].zero_()
        raise InputError("halfway")

    with monkeypatch.context() as patched:
        patched.setattr(shard, "merge", halfway)
        for _ in range(2):
            with pytest.raises(InputError, match="halfway"):
                shard.run(batch, replace(good, key="bad"))
    assert torch.equal(shard.run(batch, good)["output"], wanted)


def test_merging_and_coding_leave_the_resident_model_alone(world: World) -> None:
    shard, batch = world.shard(dtype=torch.float32), world.batch(t0=[0, 1])
    filled = weights(world.coding("layer mean", 1), key="filled")
    wanted = shard.run(batch, filled)["output"]
    arena = {name: tensor.clone() for name, tensor in shard.resident.arena.items()}
    other = world.coding("layer mean", 1, seed=5).float()
    shard.run_coded(batch, weights(other))
    shard.finish(batch, weights(other, Trim(0.5)), batch)
    merged = shard.merge(weights(other))
    for name, tensor in shard.resident.arena.items():
        assert torch.equal(tensor, arena[name]), name
    assert set(merged) == set(world.vectors.base)
    assert not torch.equal(merged["post_layernorm.weight"], arena["post_layernorm.weight"])
    assert torch.equal(shard.run(batch, filled)["output"], wanted)


@pytest.mark.parametrize("weights_of", ["ties", "elected"])
def test_a_survey_goes_on_after_a_loss_of_memory(weights_of: str, world: World) -> None:
    given = (
        Weights("s", "ties", {"density": 0.3})
        if weights_of == "ties"
        else Weights("s", trim=Trim(0.3, elect=True))
    )
    shard, answers, asked = world.shard(dtype=torch.float32), [], []
    done, said = shard.survey(given, answers)
    while not done:
        asked.append(said)
        answers = [*answers, said]
        done, said = shard.survey(given, answers)
    assert len(asked) > 1
    for heard in range(len(answers) + 1):  # one that died at any time says the same
        again = world.shard(dtype=torch.float32)
        finished, found = again.survey(given, answers[:heard])
        assert finished == (heard == len(answers))
        assert found == said if finished else torch.equal(found, asked[heard])
    # And two surveys that take turns are each as alone.
    shared, other = world.shard(dtype=torch.float32), replace(given, key="t")
    for heard in range(len(answers) + 1):
        for each in (given, other):
            finished, found = shared.survey(each, answers[:heard])
            assert found == said if finished else torch.equal(found, asked[heard])


@pytest.mark.parametrize(
    "trim", [Trim(0.4), Trim(dtype="bfloat16"), Trim(0.3, elect=True, dtype="float16")]
)
def test_codings_are_of_trimmed_task_vectors(trim: Trim, world: World) -> None:
    from fusion.task_vectors.sharded_reduce import run_surveys
    from fusion.task_vectors.sparsify import trim_survey, trimmed

    batch, shard = world.batch(**ROWS), world.shard(dtype=torch.float32)
    cut = run_surveys([trim_survey(world.vectors, trim)])
    changed = replace(world, vectors=trimmed(world.vectors, trim, cut))
    coding = world.coding("layer sample", batch.size).float()
    found = shard.finish(batch, Weights("", coding=coding, trim=trim, survey=cut), batch)
    wanted = changed.shard(dtype=torch.float32).finish(batch, weights(coding), batch)
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])
    untrimmed = shard.finish(batch, weights(coding), batch)
    assert untrimmed[0] != wanted[0]
    fresh = world.shard(dtype=torch.float32).finish(batch, weights(coding), batch)
    assert torch.equal(untrimmed[1], fresh[1])


def test_a_trim_is_made_once(world: World) -> None:
    shard = world.shard(dtype=torch.float32)
    first = shard.trimmed(weights(torch.ones(1, 3, 1), Trim(0.4)))
    assert shard.trimmed(weights(torch.zeros(1, 3, 1), Trim(0.4))) is first
    assert shard.trimmed(weights(torch.ones(1, 3, 1))) is shard.vectors
    assert shard.trimmed(weights(torch.ones(1, 3, 1), Trim(0.5))) is not first


# --------------------------------------------------------------------------------------------- misc


@pytest.mark.parametrize("shape", [(4, 3, 1), (1, 2, 1), (1, 3, 2), (7, 3, 1)], ids=str)
def test_codings_that_do_not_fit_are_refused(shape: tuple[int, ...], world: World) -> None:
    shard, batch = world.shard(dtype=torch.float32), world.batch(**ROWS)
    for call in (
        lambda given: shard.run_coded(batch, given),
        lambda given: shard.forward("k", batch, given),
        lambda given: shard.finish(batch, given, batch),
    ):
        with pytest.raises(InputError, match=r"^coding: shape .*\[a divisor of 6, 3, 1 or "):
            call(weights(torch.ones(shape)))
    assert not shard.contexts


def test_a_block_answers_for_its_own_tensors(world: World) -> None:
    blocks = [(0, 1), (1, 3), (3, 4)]
    shards = [world.shard(block) for block in blocks]
    names = [name for shard in shards for name in shard.names()]
    assert sorted(names) == sorted(world.vectors.groups)
    batch = world.batch(**ROWS)
    given = weights(world.coding("layer sample", batch.size))
    carry = shards[1].forward("k", shards[0].forward("k", batch, given), given)
    _, columns, gradient = shards[2].finish(carry, given, batch)
    assert columns.shape == (6, 3, len(shards[2].names()))
    assert gradient["hidden"].shape == carry["hidden"].shape
    assert not carry["hidden"].requires_grad
    assert list(shards[2].resident.arena)[-1] == PROJECTION
    resident = shards[2].resident.modules[-1].get_parameter("visual_projection.weight")
    shared = shards[2].merged[-1].get_parameter("visual_projection.weight")
    assert shared.data_ptr() == resident.data_ptr()  # not fused: one copy
