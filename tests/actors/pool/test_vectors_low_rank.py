"""Pools of adapters whose task vectors stay factors: the numbers of loaded ones, in less memory."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.families.clip.segments import clip_segments
from actors.families.protocol import segment_names
from actors.pool.pool import Pool, load_flat, open_pool, task_vectors
from actors.pool.vectors_low_rank import (
    factor_bytes,
    factor_vectors,
    opened_factors,
)
from actors.pool.vectors_on_disk import filed_vectors
from actors.shards.shard import Shard, Weights
from fusion.errors import InputError
from fusion.task_vectors.coding import mix
from fusion.task_vectors.lazy import LowRankTaskVectors
from fusion.task_vectors.low_rank import LowRank, Zeros
from tests.actors.checkpoints.adapter_folders import QV, write_adapter
from tests.actors.conftest import sent
from tests.fusion import laws

Q = "encoder.layers.0.self_attn.q_proj.weight"
K = "encoder.layers.0.self_attn.k_proj.weight"
FC = "encoder.layers.1.mlp.fc1.weight"
BIAS = "encoder.layers.1.mlp.fc1.bias"
CONV = "embeddings.patch_embedding.weight"


@pytest.fixture
def mixed(tiny: Any, tmp_path: Path) -> Pool:
    """Ranks that differ, weights that only some adapt, a bias and a weight that come whole."""
    base = tiny.base(tmp_path / "base")
    whole = {BIAS: torch.ones(48), Q: tiny.vision()[Q] + 1}
    experts = {
        "a": write_adapter(tmp_path / "a", base, seed=1, rank=3, layers=(*QV, "k_proj")),
        "b": write_adapter(tmp_path / "b", base, seed=2, rank=1, layers=(*QV, "patch_embedding")),
        "c": write_adapter(
            tmp_path / "c", base, seed=3, layers=("v_proj",), whole=whole, dtype=torch.float16
        ),
    }
    return open_pool(str(base), {name: str(folder) for name, folder in experts.items()})


def test_what_is_held_and_the_bits_of_loaded_task_vectors(mixed: Pool) -> None:
    loaded, found = task_vectors(mixed), opened_factors(sent(factor_vectors(mixed)))
    assert isinstance(found.deltas, LowRankTaskVectors)
    assert (found.tasks, found.groups) == (loaded.tasks, loaded.groups)
    laws.assert_same_bits(found.base, loaded.base)
    laws.assert_same_bits(dict(found.deltas.items()), loaded.deltas)
    held = found.deltas.holdings
    assert isinstance(held[FC], Zeros)
    assert isinstance(held[Q], torch.Tensor)  # an adapter brings it whole
    assert isinstance(held[BIAS], torch.Tensor)
    ranks = {name: low.ranks for name, low in held.items() if isinstance(low, LowRank)}
    assert ranks[K] == (3, 0, 0)
    assert ranks[CONV] == (0, 1, 0)
    assert ranks[Q.replace("q_", "v_")] == (3, 1, 2)
    part = opened_factors(factor_vectors(mixed, only=[K, FC]))
    laws.assert_same_bits(dict(part.deltas.items()), loaded.restrict([K, FC]).deltas)
    laws.assert_same_bits(
        dict(opened_factors(factor_vectors(mixed)).deltas.items()),
        dict(filed_vectors(mixed).deltas.items()),
    )


def test_bytes_are_those_that_headers_say(mixed: Pool) -> None:
    factored, counted = factor_vectors(mixed), []
    assert factored.nbytes == mixed.base_bytes + factor_bytes(mixed, mixed.names)
    arrays = (*factored.flat.base.values(), *factored.factors.base.values())
    assert factored.nbytes == sum(array.nbytes for array in arrays)
    deltas = opened_factors(factored).deltas
    assert isinstance(deltas, LowRankTaskVectors)
    assert deltas.nbytes == factor_bytes(mixed, mixed.names)
    assert factored.nbytes < load_flat(mixed).nbytes / 2
    assert len(pickle.dumps(factored)) < factored.nbytes + 2 * 10**4
    factor_vectors(mixed, advance=counted.append)
    assert sum(counted) == mixed.read_bytes
    chain = clip_segments(mixed.base)
    each = [segment_names(chain, at, at + 1) for at in range(len(chain))]
    assert sum(factor_bytes(mixed, names) for names in each) == deltas.nbytes


def test_every_shape_of_coding_goes_through_a_shard(mixed: Pool) -> None:
    """Forward and gradients, in one block and in blocks of which some no expert changes."""
    loaded, found = task_vectors(mixed), opened_factors(factor_vectors(mixed))
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=draw, dtype=torch.uint8)
    chain = clip_segments(mixed.base)
    for models in (1, 3):
        coding = torch.rand(models, 3, len(loaded.groups), generator=draw)
        weights = Weights("w", coding=coding)
        outputs, slopes = [], []
        for vectors, blocks in ((loaded, [(0, 4)]), (found, [(0, 4)]), (found, [(0, 1), (1, 4)])):
            shards = [
                Shard(mixed.base, replace(vectors.restrict(names), groups=loaded.groups), {},
                      block=block)
                for block in blocks
                for names in [[n for n in segment_names(chain, *block) if n in vectors.base]]
            ]  # fmt: skip
            carries: list[Any] = [{"pixels": pixels}]
            for at, shard in enumerate(shards):
                carries.append(shard.forward(str(at), carries[-1], weights))
            gradient = {"output": torch.ones_like(carries[-1]["output"])}
            columns = []
            for at, shard in reversed([*enumerate(shards)]):
                column, gradient = shard.backward(str(at), carries[at], weights, gradient)
                columns.insert(0, column)
            outputs.append(carries[-1]["output"])
            slopes.append(torch.cat(columns, dim=2))
        for output, slope in zip(outputs[1:], slopes[1:], strict=True):
            torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(slope, slopes[0], rtol=1e-3, atol=1e-4)
        assert torch.equal(slopes[1], slopes[2])  # however it is cut
        assert not slopes[1][:, :, loaded.groups.index(FC)].any()
    merged = mix(found, coding[:1])
    torch.testing.assert_close(merged, mix(loaded, coding[:1]), rtol=1e-5, atol=1e-6)


def test_a_full_model_is_refused(tiny: Any, mixed: Pool, tmp_path: Path) -> None:
    folder = mixed.experts["a"].folder
    full = tiny.expert(tmp_path / "full", seed=1)
    pool = open_pool(str(mixed.base.folder), {"a": str(folder), "full": str(full)})
    said = "placement.weights: factored; pool.experts.full is a full model: memory or files"
    with pytest.raises(InputError) as caught:
        factor_vectors(pool)
    assert str(caught.value) == said
