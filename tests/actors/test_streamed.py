"""Mixes made from files tensor by tensor: the bits of loaded task vectors, and little memory."""

import pytest
import torch

from actors.pool import open_pool, task_vectors
from actors.streamed import streamed
from fusion.coding import mix
from fusion.errors import InputError
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
    import shutil

    from safetensors.torch import load_file, save_file

    there = tmp_path / "bad"
    shutil.copytree(tiny_pool.root / "experts" / "tones", there)
    tensors = load_file(there / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.fc1.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
    bad = open_pool(str(tiny_pool.root / "base"), {"bad": str(there)})
    with pytest.raises(InputError, match=r"pool\.experts\.bad: .*fc1.weight.*1 of .* NaN or Inf"):
        list(streamed(bad, lambda name: [0.5]))
