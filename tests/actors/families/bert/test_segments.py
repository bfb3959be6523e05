"""BERT and RoBERTa as chains: the library's own numbers, and the laws of merged layers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.bert.segments import Classify, Embed, LastLayer, Layer, bert_segments
from actors.families.protocol import Activations, compute_all_rows, segment_names
from actors.families.registry import inspect
from actors.pool.pool import Pool, open_pool, task_vectors
from actors.shards.messages import Weights
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.resident_model import ResidentModel
from actors.shards.shard import Shard
from tests.tiny_bert import Models

CUTS = [[(0, 4)], [(0, 1), (1, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]]


def texts(models: Models, lengths: tuple[int, ...] = (9, 5, 7)) -> Activations:
    """Rows of random tokens, padded; the second half of each is of type 1 where there is one."""
    draw, longest = torch.Generator().manual_seed(5), max(lengths)
    ids = torch.randint(5, models.vocabulary, (len(lengths), longest), generator=draw)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids[~mask] = models.config(2).pad_token_id
    types = torch.zeros_like(ids)
    if models.kind == "bert":
        types = ((torch.arange(longest) >= torch.tensor(lengths)[:, None] // 2) & mask).long()
    return {"ids": ids, "mask": mask, "types": types}


def library(folder: Path, given: Activations, **more: Any) -> Any:
    """What `transformers` makes of the same rows."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(
            input_ids=given["ids"],
            attention_mask=given["mask"].long(),
            token_type_ids=given["types"],
            **more,
        )


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    return models.write(tmp_path / "base")


@pytest.fixture
def base(folder: Path) -> Checkpoint:
    return inspect(str(folder), "pool.base")


@pytest.fixture
def pool(models: Models, folder: Path, tmp_path: Path) -> Pool:
    runs = {f"run_{i}": str(models.write(tmp_path / f"run_{i}", i + 1)) for i in range(2)}
    return open_pool(str(folder), runs)


def pipeline_of(pool: Pool, cut: list[tuple[int, int]], dtype: torch.dtype) -> Pipeline:
    vectors = task_vectors(pool)
    vectors = replace(
        vectors,
        base={k: v.to(dtype) for k, v in vectors.base.items()},
        deltas={k: v.to(dtype) for k, v in vectors.deltas.items()},  # type: ignore[attr-defined]
    )
    shards = []
    for block in cut:
        names = segment_names(bert_segments(pool.base), *block)
        part = vectors.restrict([name for name in vectors.base if name in names])
        heads = {"task": torch.eye(3, dtype=dtype)}
        shards.append(Shard(pool.base, part, heads, dtype=dtype, block=block, contexts=3))
    return Pipeline(shards, [shard.names() for shard in shards], pool.groups, LocalLink())


def through(pipeline: Pipeline, given: Activations, coding: torch.Tensor) -> torch.Tensor:
    """Outputs of merged layers, shard by shard."""
    carry = given
    for shard in pipeline.shards:
        carry = shard.run_coded(carry, Weights("", coding=coding))
    return carry["output"]


def test_every_tensor_is_in_one_segment(base: Checkpoint) -> None:
    chain = bert_segments(base)
    assert [link.kind for link in chain] == [Embed, Layer, LastLayer, Classify]
    names = [name for link in chain for name in link.names.values()]
    assert sorted(names) == sorted(base.tensors)
    for link in chain:
        shapes = {link.names[key]: tuple(p.shape) for key, p in link.build().named_parameters()}
        assert shapes == {name: tuple(base.tensors[name].shape) for name in link.names.values()}
        assert link.mlp is None or link.build().get_submodule(link.mlp) is not None


@pytest.mark.parametrize("lengths", [(9, 5, 7), (6, 6), (4,)], ids=str)
def test_the_chain_is_the_library_s_model(
    lengths: tuple[int, ...], models: Models, folder: Path, base: Checkpoint
) -> None:
    given = texts(models, lengths)
    wanted = library(folder, given, output_hidden_states=True)
    found = ResidentModel(base).outputs(given)
    torch.testing.assert_close(found, wanted.logits, rtol=1e-5, atol=1e-6)
    *inner, last = wanted.hidden_states
    for stop, state in enumerate(inner, start=1):
        found = ResidentModel(base, block=(0, stop)).run(given)["hidden"]
        assert torch.equal(found, state)
    # Of the last layer the first token alone is read, and products of fewer rows round otherwise.
    encoder = ResidentModel(base, block=(0, len(inner) + 1))
    first = encoder.run(given)["hidden"]
    torch.testing.assert_close(first, last[:, :1], rtol=1e-5, atol=1e-6)
    compute_all_rows(encoder.modules[-1], True)
    assert torch.equal(encoder.run(given)["hidden"], last)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_blocks_in_a_row_are_the_whole_to_the_bit(
    cut: list[tuple[int, int]], models: Models, base: Checkpoint
) -> None:
    carry = given = texts(models)
    for block in cut:
        carry = ResidentModel(base, block=block).run(carry)
    assert torch.equal(carry["output"], ResidentModel(base).outputs(given))


def test_padding_changes_no_row(models: Models, base: Checkpoint) -> None:
    given = texts(models)
    encoder = ResidentModel(base, dtype=torch.float64)
    whole = encoder.outputs(given)
    for at, length in enumerate((9, 5, 7)):
        alone = {name: value[at : at + 1, :length] for name, value in given.items()}
        torch.testing.assert_close(encoder.outputs(alone)[0], whole[at])


def test_merged_once_is_the_library_s_model_with_the_merged_state(
    models: Models, folder: Path, pool: Pool, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    members = [folder, *(expert.folder for expert in pool.experts.values())]
    states = [
        AutoModelForSequenceClassification.from_pretrained(each).state_dict() for each in members
    ]
    merged = AutoModelForSequenceClassification.from_pretrained(folder)
    first, *others = states
    state = {key: v + sum(0.3 * (each[key] - v) for each in others) for key, v in first.items()}
    merged.load_state_dict(state)
    merged.save_pretrained(tmp_path / "merged")
    given = texts(models)
    wanted = library(tmp_path / "merged", given).logits
    found = through(pipeline_of(pool, CUTS[0], torch.float32), given, torch.full((1, 2, 1), 0.3))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_model_a_row_is_a_loop_over_models(
    cut: list[tuple[int, int]], models: Models, pool: Pool
) -> None:
    given, pipeline = texts(models), pipeline_of(pool, cut, torch.float64)
    draw = torch.Generator().manual_seed(3)
    coding = torch.rand(3, 2, len(pool.groups), generator=draw, dtype=torch.float64)
    found = through(pipeline, given, coding)
    for at in range(3):
        row = {name: value[at : at + 1] for name, value in given.items()}
        torch.testing.assert_close(found[at], through(pipeline, row, coding[at : at + 1])[0])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_several_models_of_two_rows_are_a_loop_over_models(
    cut: list[tuple[int, int]], models: Models, pool: Pool
) -> None:
    given, pipeline = texts(models, (9, 5, 7, 6)), pipeline_of(pool, cut, torch.float64)
    draw = torch.Generator().manual_seed(3)
    coding = torch.rand(2, 2, len(pool.groups), generator=draw, dtype=torch.float64)
    found = through(pipeline, given, coding)
    for at in range(2):
        rows = {name: value[2 * at : 2 * at + 2] for name, value in given.items()}
        wanted = through(pipeline, rows, coding[at : at + 1])
        torch.testing.assert_close(found[2 * at : 2 * at + 2], wanted)


def test_gradients_of_codings_are_finite_differences(models: Models, pool: Pool) -> None:
    given, (shard,) = texts(models), pipeline_of(pool, CUTS[0], torch.float64).shards
    coding = torch.full((3, 2, len(pool.groups)), 0.3, dtype=torch.float64)
    weigh = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = shard.forward("k", given, Weights("", coding=coding))["output"]
    gradient, _ = shard.backward("k", given, Weights("", coding=coding), {"output": weigh})
    assert out.shape == (3, 3)
    for row, task, group in itertools.product((0, 2), range(2), range(0, len(pool.groups), 5)):
        step = torch.zeros_like(coding)
        step[row, task, group] = 1e-6
        ends = [
            shard.run_coded(given, Weights("", coding=coding + sign * step))["output"]
            for sign in (1, -1)
        ]
        slope = float((weigh * (ends[0] - ends[1])).sum() / 2e-6)
        assert gradient[row, task, group].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_statistics_count_real_tokens_alone(models: Models, pool: Pool) -> None:
    from fusion.methods.statistics.collect import Grams

    given = texts(models)
    encoder = ResidentModel(pool.base)
    link, module = encoder.chain[1], encoder.modules[1]
    hidden = ResidentModel(pool.base, block=(0, 1)).run(given)
    padded = {"hidden": hidden["hidden"].clone(), "mask": hidden["mask"]}
    padded["hidden"][~given["mask"]] = 1e3
    sums = []
    for carry in (hidden, padded):
        grams = Grams([(module, link.names)], set(link.names.values()))
        grams.on, grams.masks = True, carry
        module(carry)
        grams.close()
        sums.append(grams.means()["encoder.layer.0.attention.self.query.weight"])
        assert set(grams.means()) == {
            f"encoder.layer.0.{part}.weight"
            for part in ("attention.self.query", "attention.output.dense", "intermediate.dense",
                         "output.dense")
        }  # fmt: skip
    assert torch.equal(*sums)
