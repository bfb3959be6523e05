import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.checkpoints.checkpoint import read
from actors.families.clip.architecture import PROJECTION
from actors.pool.pool import load_flat, open_pool, task_vectors, unflatten
from fusion.task_vectors.task_vectors import TaskVectors
from tests.refusals import one_line

KEY = "encoder.layers.0.mlp.fc1.weight"

Folders = tuple[str, dict[str, str]]


def refused(base: object, experts: dict[str, Any], *parts: str, load: bool = False) -> None:
    """Opening (or loading) the pool raises one line with all of these in it."""
    sources = {name: str(folder) for name, folder in experts.items()}
    pool = open_pool(str(base), sources) if load else None
    with one_line(*parts):
        task_vectors(pool) if pool else open_pool(str(base), sources)


def test_what_a_pool_says_of_itself(tiny: Any, pool_folders: Folders) -> None:
    pool = open_pool(*pool_folders)
    size = sum(tensor.numel() for tensor in tiny.vision().values())
    assert pool.tasks == ("t0", "t1", "t2")
    assert pool.names == tiny.vision_order
    assert pool.parameters == size
    assert (pool.base_bytes, pool.read_bytes) == (4 * size, 12 * size)
    assert set(pool.dtypes.values()) == {"float32"}
    assert pickle.loads(pickle.dumps(pool)) == pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_task_vectors_are_those_of_the_state_dicts(
    tiny: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = tiny.base(tmp_path / "base", dtype)
    experts = {"b": tiny.expert(tmp_path / "b", 1, dtype), "a": tiny.expert(tmp_path / "a", 2)}
    pool = open_pool(str(base), {name: str(folder) for name, folder in experts.items()})
    counted: list[int] = []
    found = task_vectors(pool, advance=counted.append)
    states = {name: dict(read(expert)) for name, expert in pool.experts.items()}
    expected = TaskVectors.from_state_dicts(dict(read(pool.base, pool.names)), states)
    assert found.tasks == ("b", "a")
    assert list(found.base) == list(tiny.vision_order)
    for name, tensor in expected.base.items():
        assert found.base[name].dtype == dtype
        assert torch.equal(found.base[name], tensor)
        assert found.deltas[name].dtype == torch.float32
        assert torch.equal(found.deltas[name], expected.deltas[name])
    assert sum(counted) == pool.read_bytes


def test_flat_arrays_are_few(pool_folders: Folders) -> None:
    pool = open_pool(*pool_folders)
    flat = load_flat(pool)
    assert [array.shape for array in flat.deltas.values()] == [(3, pool.parameters)]
    assert [array.shape for array in flat.base.values()] == [(4 * pool.parameters,)]
    assert flat.nbytes == pool.base_bytes + 12 * pool.parameters  # float32, three task vectors
    assert list(unflatten(flat).base) == list(pool.names)


def test_the_projection_is_fused_iff_an_expert_brings_it(tiny: Any, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    moved = tiny.state[PROJECTION] + 1
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    with_projection = tiny.write(tmp_path / "a", tower | {PROJECTION: moved})
    without = tiny.expert(tmp_path / "b", 2)
    pool = open_pool(str(base), {"a": str(with_projection), "b": str(without)})
    assert pool.names == (*tiny.vision_order, PROJECTION)
    deltas = task_vectors(pool).deltas[PROJECTION]
    torch.testing.assert_close(deltas[0], torch.ones_like(moved))
    assert not deltas[1].any()
    assert PROJECTION not in open_pool(str(base), {"b": str(without)}).names


def test_a_full_model_as_expert(tiny: Any, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    full = {k: v.half() for k, v in {**tiny.state, **tower}.items()}
    expert = tiny.write(tmp_path / "a", full)
    vectors = task_vectors(open_pool(str(base), {"a": str(expert)}))
    assert vectors.deltas[KEY].any()
    scale = tiny.write(tmp_path / "b", full | {"logit_scale": torch.tensor(3.0).half()})
    refused(base, {"b": scale}, "pool.experts.b", "'logit_scale'", "model.safetensors", load=True)


def test_the_base_must_be_a_full_model(tiny: Any, tmp_path: Path) -> None:
    tower = tiny.expert(tmp_path / "a", 1)
    refused(tower, {"a": tower}, "pool.base", "must be a full CLIPModel")


def test_no_experts(tiny: Any, tmp_path: Path) -> None:
    refused(tiny.base(tmp_path / "base"), {}, "pool.experts: none given")


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "gelu"), ("num_attention_heads", 4)])
def test_another_architecture(tiny: Any, tmp_path: Path, field: str, value: object) -> None:
    base = tiny.base(tmp_path / "base")
    expert = tiny.write(tmp_path / "a", tiny.vision(1), **{field: value})
    refused(base, {"a": expert}, "pool.experts.a", "config.json", field, repr(value))


def test_another_projection(tiny: Any, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    tower = tiny.vision(1) | {PROJECTION: torch.zeros(3, 32)}
    expert = tiny.write(tmp_path / "a", tower)
    refused(base, {"a": expert}, f"'{PROJECTION}'", "[3, 32]", "[24, 32]")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite(tiny: Any, tmp_path: Path, bad: float) -> None:
    base = tiny.base(tmp_path / "base")
    tower = tiny.vision(1)
    tower[KEY][3, 4] = bad
    expert = tiny.write(tmp_path / "a", tower)
    refused(base, {"a": expert}, "a/model.safetensors", repr(KEY), "1 of 1536 are NaN", load=True)
    spoiled = tiny.base(tmp_path / "bad", **{f"vision_model.{KEY}": tower[KEY]})
    good = tiny.expert(tmp_path / "b", 2)
    refused(spoiled, {"b": good}, "bad/model.safetensors", repr(KEY), "NaN or Inf", load=True)


def test_position_ids_that_do_not_count(tiny: Any, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    key = "vision_model.embeddings.position_ids"
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    good = tiny.write(tmp_path / "a", tower | {key: torch.arange(5)[None]})
    assert task_vectors(open_pool(str(base), {"a": str(good)})).tasks == ("a",)
    bad = tiny.write(tmp_path / "b", tower | {key: torch.zeros(1, 5, dtype=torch.int64)})
    refused(base, {"b": bad}, "b/model.safetensors", repr(key), load=True)
