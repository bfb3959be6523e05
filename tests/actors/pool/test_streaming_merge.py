"""Mixes made from files tensor by tensor: the bits of loaded task vectors, and little memory."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoints.checkpoint import Checkpoint, header
from actors.pool import streaming_merge as module
from actors.pool.pool import open_pool, task_vectors
from actors.pool.streaming_merge import TensorSource, mixed, streamed
from fusion.errors import InputError
from fusion.task_vectors.coding import mix
from tests.fusion.laws import assert_same_bits


@pytest.fixture(scope="module")
def pool(tiny_pool):
    root = tiny_pool.root
    return open_pool(
        str(root / "base"), {t: str(root / "experts" / t) for t in ("lines", "tones", "blobs")}
    )


@pytest.mark.parametrize(
    "coding", [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, -0.3, 0.7], [0.0, 1.0, 0.0]]
)
def test_the_bits_of_a_mix_of_loaded_task_vectors(pool, coding):
    wanted = mix(task_vectors(pool), torch.tensor(coding, dtype=torch.float64).view(1, 3, 1))
    assert_same_bits(dict(streamed(pool, lambda name: coding)), wanted)


def test_shares_of_their_own_for_each_tensor(pool):
    names = pool.groups
    table = torch.rand(3, len(names), generator=torch.Generator().manual_seed(0)).double()
    table[1, ::2] = 0  # an ingredient that only some tensors read
    column = dict(zip(names, table.T.tolist(), strict=True))
    assert_same_bits(dict(streamed(pool, column.__getitem__)), mix(task_vectors(pool), table[None]))


def test_a_wrong_number_is_named_with_its_file(pool, tiny_pool, tmp_path):
    there = tmp_path / "bad"
    shutil.copytree(tiny_pool.root / "experts" / "tones", there)
    tensors = load_file(there / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.fc1.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
    bad = open_pool(str(tiny_pool.root / "base"), {"bad": str(there)})
    with pytest.raises(InputError, match=r"pool\.experts\.bad: .*fc1.weight.*1 of .* NaN or Inf"):
        list(streamed(bad, lambda name: [0.5]))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_bits_in_small_chunks_on_any_number_of_threads(pool, monkeypatch, threads, count):
    coding = [0.4, -0.2, 0.9]
    wanted = mix(task_vectors(pool), torch.tensor(coding, dtype=torch.float64).view(1, 3, 1))
    monkeypatch.setattr(module, "CHUNK", 48)
    monkeypatch.setattr(module, "SERIAL", 128)
    threads(count)
    assert_same_bits(dict(streamed(pool, lambda name: coding)), wanted)
    assert torch.get_num_threads() == count


def test_each_thread_works_alone_and_torch_is_left_as_it_was(pool, threads):
    threads(3)
    with module.worker_threads() as workers:
        assert torch.get_num_threads() == 3
        assert set(workers.threads.map(lambda _: torch.get_num_threads(), range(20))) == {1}
    some = streamed(pool, lambda name: [0.5, 0.5, 0.0])
    next(some)
    assert torch.get_num_threads() == 3
    some.close()
    assert torch.get_num_threads() == 3


def test_other_precisions_and_shards(tiny_pool, tmp_path, monkeypatch):
    """A bfloat16 base; experts of float16, float64, and float32 in two files."""
    sources = {"base": tiny_pool.root / "base"}
    sources |= {task: tiny_pool.root / "experts" / task for task in ("lines", "tones", "blobs")}
    dtypes = {"base": torch.bfloat16, "lines": torch.float16, "tones": torch.float64}
    for member, source in sources.items():
        there = shutil.copytree(source, tmp_path / member)
        tensors = load_file(there / "model.safetensors")
        kind = dtypes.get(member, torch.float32)
        tensors = {name: tensor.to(kind) for name, tensor in tensors.items()}
        save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
    split = tmp_path / "blobs"
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    halves = {"one.safetensors": list(tensors)[::2], "two.safetensors": list(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, split / file)
    where = {name: file for file, names in halves.items() for name in names}
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    pool = open_pool(
        str(tmp_path / "base"), {t: str(tmp_path / t) for t in ("lines", "tones", "blobs")}
    )
    coding = [0.3, 0.5, -0.1]
    wanted = mix(task_vectors(pool), torch.tensor(coding, dtype=torch.float64).view(1, 3, 1))
    monkeypatch.setattr(module, "CHUNK", 100)
    found = dict(streamed(pool, lambda name: coding))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert_same_bits(found, wanted)


def test_a_file_that_changed_since_it_was_inspected(tiny_pool, tmp_path):
    there = shutil.copytree(tiny_pool.root / "experts" / "tones", tmp_path / "late")
    pool = open_pool(str(tiny_pool.root / "base"), {"late": str(there)})
    os.utime(there / "model.safetensors", ns=(0, 1))
    with pytest.raises(
        InputError, match=r"pool\.experts\.late: .*safetensors: changed while in use"
    ):
        dict(streamed(pool, lambda name: [0.5]))
    assert dict(streamed(pool, lambda name: [0.0]))  # not read without a share


def test_a_file_cut_off_while_it_is_read(tiny_pool, tmp_path):
    there = shutil.copytree(tiny_pool.root / "experts" / "tones", tmp_path / "cut")
    pool = open_pool(str(tiny_pool.root / "base"), {"cut": str(there)})
    made = streamed(pool, lambda name: [0.5])
    next(made)
    os.truncate(there / "model.safetensors", 2000)
    with pytest.raises(
        InputError, match=r"pool\.experts\.cut: .*model\.safetensors: .*ends too early"
    ):
        dict(made)


def test_a_number_alone_and_an_empty_tensor(tmp_path):
    stacks = {"base": {"one": torch.tensor(2.0), "none": torch.empty(0, 3)}}
    stacks["run"] = {"one": torch.tensor(5.0), "none": torch.empty(0, 3)}
    with module.worker_threads() as workers:
        found = {}
        for name in ("one", "none"):
            sources = []
            for member, tensors in stacks.items():
                file = tmp_path / f"{member}.safetensors"
                save_file(tensors, file)
                infos = header(file, member)
                checkpoint = Checkpoint(member, "", tmp_path, {}, infos, {}, {})
                descriptor = os.open(file, os.O_RDONLY)
                sources.append(TensorSource(checkpoint, name, infos[name], descriptor))
            found[name] = mixed(sources[0], [(sources[1], 0.5)], 1.0, workers)
            for source in sources:
                os.close(source.descriptor)
    assert_same_bits(found, {"one": torch.tensor(3.5), "none": torch.empty(0, 3)})
