"""T5 as a chain: the numbers of `transformers` to the bit, at every cut, merged or not."""

from __future__ import annotations

import itertools

import pytest
import torch

from actors.families.protocol import segment_names
from actors.families.t5.segments import (
    DecoderBlock,
    Embed,
    EncoderBlock,
    Score,
    Turn,
    bidirectional,
    logarithmic,
    t5_segments,
)
from actors.shards.messages import Weights
from actors.shards.resident_model import Blueprint, ResidentModel
from actors.shards.routers import mlp_names
from fusion.logits.entropy import entropy
from tests.actors.families.t5.models import (
    ANSWERS,
    INPUTS,
    KINDS,
    LAST,
    DrawnRows,
    batch,
    collated,
    library,
    opened,
    pipeline_of,
    vectors_of,
    write_expert,
    write_model,
)

CUTS = [[(0, LAST)], [(0, 2), (2, LAST)], [(0, 1), (1, 3), (3, 4), (4, LAST)]]


@pytest.fixture(scope="module", params=KINDS)
def folders(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    base = write_model(root / "base", request.param)
    return base, [write_expert(root / f"expert{seed}", base, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def pool(folders):
    base, experts = folders
    return opened(base), [opened(each, "pool.experts.x") for each in experts]


def encoder_of(base, dtype=torch.float32, block=None):
    plan = Blueprint(t5_segments(base), INPUTS, vectors_of(base, [base], dtype).base)
    return ResidentModel(plan, dtype=dtype, block=block)


def logits(encoder, given):
    """Of every node [B, m, V]."""
    *before, last = encoder.modules
    carry = given
    with torch.inference_mode():
        for module in before:
            carry = module(carry)
        hidden = last.final_layer_norm(carry["hidden"])
        return last.lm_head(hidden if last.factor is None else hidden * last.factor)


def chain_of(tokens, rows):
    """Rows of one task whose only answer is these tokens."""
    part = {**rows, "answers": torch.tensor([[[*tokens, 1]]])}
    return INPUTS.collate([part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [(), (5, 6, 7)], ids=len)
def test_a_chain_has_the_bits_of_transformers(tokens, dtype, folders, pool):
    given = chain_of(tokens, DrawnRows("one").take(torch.arange(4)))
    assert not given["mask"].all()
    found = logits(encoder_of(pool[0], dtype), given)
    with torch.inference_mode():
        wanted = library(folders[0], dtype)(
            input_ids=given["ids"],
            attention_mask=given["mask"].long(),
            decoder_input_ids=torch.tensor([[0, *tokens]]).expand(4, -1),
        ).logits
    assert torch.equal(found, wanted)


def test_every_tensor_is_in_the_chain(pool):
    base = pool[0]
    chain = t5_segments(base)
    kinds = [Embed, EncoderBlock, EncoderBlock, Turn, DecoderBlock, Score]
    assert [link.kind for link in chain] == kinds
    names = [name for link in chain for name in link.names.values()]
    assert set(names) == set(base.tensors)
    assert len(names) == len(base.tensors) + base.fields["tied"]
    for link in chain:
        module = link.build()
        shapes = {link.names[key]: tuple(p.shape) for key, p in module.named_parameters()}
        assert shapes == {name: tuple(base.tensors[name].shape) for name in link.names.values()}
    inside = mlp_names(chain)
    assert len(inside) == 3 * (2 if base.fields["tied"] else 3)
    assert all("DenseReluDense" in name for name in inside)
    assert segment_names(chain, 3, 4) == ("encoder.final_layer_norm.weight",)


@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_blocks_in_a_row_are_the_whole_to_the_bit(cut, pool):
    carry = given = collated(batch())
    for block in cut:
        carry = encoder_of(pool[0], block=block).run(carry)
        assert block[1] == LAST or next(iter(carry)) == "hidden"
    assert torch.equal(carry["output"], encoder_of(pool[0]).outputs(given))


def test_padding_changes_no_row(pool):
    encoder = encoder_of(pool[0])
    whole = encoder.outputs(collated(batch()))
    for at, (task, row) in enumerate(itertools.product(ANSWERS, range(4))):
        alone = INPUTS.collate([DrawnRows(task).take(torch.tensor([row]))])
        found = encoder.outputs(alone)[0]
        torch.testing.assert_close(found, whole[at, : len(found)], rtol=0, atol=3e-6)


def test_buckets_are_those_of_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention

    ahead = torch.arange(-200, 201)
    library = T5Attention._relative_position_bucket
    for buckets, largest in ((32, 128), (8, 20)):
        wanted = library(ahead, True, buckets, largest)
        assert torch.equal(bidirectional(ahead, buckets, largest), wanted)
        wanted = library(ahead, False, buckets, largest)
        assert torch.equal(logarithmic((-ahead).clamp(min=0), buckets, largest), wanted)


def coding_of(models, groups, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(models, 2, groups, generator=draw, dtype=torch.float64)


def test_one_merged_model_is_transformers_with_the_merged_state_dict(folders, pool):
    base, experts = pool
    vectors = vectors_of(base, experts, torch.float64)
    coding = coding_of(1, len(vectors.base))
    model = library(folders[0], torch.float64)
    merged = {
        name: t + torch.einsum("t,t...->...", coding[0, :, at], vectors.deltas[name])
        for at, (name, t) in enumerate(vectors.base.items())
    }
    for name, parameter in model.named_parameters():
        parameter.data = merged[name]
    given = collated(batch(tasks=("many",)))
    pipeline = pipeline_of(base, vectors, CUTS[1], torch.float64)
    (found,) = pipeline.embed_coded([(batch(tasks=("many",)), Weights("", coding=coding))])
    for at, answer in enumerate(ANSWERS["many"]):
        tokens = answer[answer >= 0]
        before = torch.cat([torch.zeros(1, dtype=torch.int64), tokens[:-1]])
        with torch.inference_mode():
            z = model(
                input_ids=given["ids"],
                attention_mask=given["mask"].long(),
                decoder_input_ids=before.expand(4, -1),
            ).logits
        wanted = z.log_softmax(-1)[:, range(len(tokens)), tokens].sum(1)
        # `transformers` averages squares in float32 whatever the dtype.
        torch.testing.assert_close(found[:, 2 + at], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_merged_layers_are_the_merged_model_and_a_loop_over_models(cut, pool):
    base, experts = pool
    given = batch()
    pipeline = pipeline_of(base, vectors_of(base, experts, torch.float64), cut, torch.float64)
    coding = coding_of(given.size, len(pipeline.groups))
    one = Weights("one", coding=coding[:1])
    (coded,) = pipeline.embed_coded([(given, one)])
    (filled,) = pipeline.embed(one, [given])
    torch.testing.assert_close(coded, filled)
    (found,) = pipeline.embed_coded([(given, Weights("", coding=coding))])
    for at in range(given.size):
        (wanted,) = pipeline.embed(Weights(f"row {at}", coding=coding[at : at + 1]), [given])
        torch.testing.assert_close(found[at], wanted[at])


@pytest.mark.parametrize("cut", CUTS, ids=len)
@pytest.mark.parametrize("models", [1, 2], ids=["a task", "half of a task"])
def test_tasks_with_models_of_their_own_are_stacked(models, cut, pool):
    base, experts = pool
    pipeline = pipeline_of(base, vectors_of(base, experts, torch.float64), cut, torch.float64)
    coding = coding_of(models * len(ANSWERS), len(pipeline.groups))
    parts = coding.split(models)
    [stacked] = pipeline.gradients([(batch(), Weights("", coding=coding))])
    alone = pipeline.gradients(
        [
            (batch(tasks=(task,)), Weights("", coding=part))
            for task, part in zip(ANSWERS, parts, strict=True)
        ]
    )
    for at, each in enumerate(alone):
        torch.testing.assert_close(stacked.coding.split(models)[at], each.coding)
        [(task, loss)] = each.losses.items()
        assert stacked.losses[task] == pytest.approx(loss, rel=1e-9)


def test_as_many_source_tokens_as_models(pool):
    """The trap of looking up biases by query: rows would take other models' tables."""
    base, experts = pool
    vectors = vectors_of(base, experts, torch.float64)
    pipeline = pipeline_of(base, vectors, CUTS[0], torch.float64)
    given = batch(rows=8, tasks=("one",))
    assert collated(given)["ids"].shape == (8, 8)
    coding = coding_of(8, len(pipeline.groups))
    (found,) = pipeline.embed_coded([(given, Weights("", coding=coding))])
    (wanted,) = pipeline.embed(Weights("row 2", coding=coding[2:3]), [given])
    torch.testing.assert_close(found[2], wanted[2])


def test_one_entropy_of_mean_logits_from_the_end_token(folders, pool):
    """FusionBench's objective, of one of two tasks in a batch; the other keeps a row's entropy."""
    base, experts = pool
    vectors = vectors_of(base, experts, torch.float64)
    pipeline = pipeline_of(base, vectors, CUTS[1], torch.float64, "fusionbench")
    given = batch(averaged=frozenset({"one"}))
    coding = torch.zeros(1, 2, len(pipeline.groups), dtype=torch.float64)
    (found,) = pipeline.gradients([(given, Weights("", coding=coding))])
    rows, model = collated(batch()), library(folders[0], torch.float64)
    with torch.inference_mode():
        z = [
            model(
                input_ids=rows["ids"][part],
                attention_mask=rows["mask"][part].long(),
                decoder_input_ids=torch.full((4, 1), start),
            ).logits[:, 0]
            for part, start in ((slice(0, 4), 1), (slice(4, 8), 0))
        ]
    p = z[0].mean(0).softmax(-1)
    wanted = {"one": -(p * (p + 1e-8).log()).sum(), "many": entropy(z[1]).mean()}
    assert abs(wanted["one"] - entropy(z[0]).mean()) > 0.05
    for task, value in wanted.items():
        assert found.losses[task] == pytest.approx(value.item(), rel=1e-5)


AVERAGED = {"fusionbench": frozenset(ANSWERS)}


@pytest.mark.parametrize(
    ("cut", "objective"),
    [*itertools.product(CUTS, ("vocabulary", "answers")), (CUTS[2], "fusionbench")],
    ids=lambda given: given if isinstance(given, str) else len(given),
)
def test_gradients_of_codings_are_finite_differences(cut, objective, pool):
    base, experts = pool
    vectors = vectors_of(base, experts, torch.float64)
    pipeline = pipeline_of(base, vectors, cut, torch.float64, objective)
    given = batch(rows=2, averaged=AVERAGED.get(objective, frozenset()))
    groups = len(pipeline.groups)
    coding = torch.full((1, 2, groups), 0.3, dtype=torch.float64)

    def loss(coding):
        (found,) = pipeline.gradients([(given, Weights("", coding=coding))])
        return sum(found.losses.values()), found.coding

    _, gradient = loss(coding)
    for group in range(0, groups, 1 if cut == CUTS[1] else 5):
        step = torch.zeros_like(coding)
        step[0, group % 2, group] = 1e-5
        slope = (loss(coding + step)[0] - loss(coding - step)[0]) / 2e-5
        found = gradient[0, group % 2, group].item()
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-7), pipeline.groups[group]
