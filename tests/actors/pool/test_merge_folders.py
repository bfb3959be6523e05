"""`fusion.merge` on model folders: CLIP, BERT and a LoRA adapter."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusion
from actors.pool.merge_folders import open_folders
from fusion import merge_models
from fusion.errors import InputError
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.fusion.laws import assert_same_bits
from tests.tiny_bert import make_models
from tests.tiny_pool import TinyPool

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point as `pyproject.toml` declares it, whatever was installed when."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    points = [
        EntryPoint(n, v, merge_models.READERS) for n, v in declared[merge_models.READERS].items()
    ]
    assert [point.load() for point in points] == [open_folders]
    monkeypatch.setattr(merge_models, "entry_points", lambda group: points)


def test_folders_give_the_state_dict_of_a_whole_model(tiny_pool: TinyPool) -> None:
    root = tiny_pool.root
    experts = {task: root / "experts" / task for task in ("lines", "tones")}
    merged = fusion.merge("simple_average", root / "base", experts)
    base = load_file(root / "base" / "model.safetensors")
    assert set(merged) == set(base)
    # The experts' folders hold the vision tower alone: all other tensors are the base's.
    one, two = (load_file(folder / "model.safetensors") for folder in experts.values())
    assert set(one) == set(two) < set(base)
    for name, tensor in merged.items():
        if name in one and tensor.is_floating_point():
            wanted = (one[name].double() + two[name].double()) / 2
            torch.testing.assert_close(tensor.double(), wanted)
        else:
            assert torch.equal(tensor, base[name]), name
    again = fusion.merge(
        "simple_average", str(root / "base"), {k: str(v) for k, v in experts.items()}
    )
    assert_same_bits(merged, again)


def test_classifiers_of_texts(tmp_path: Path) -> None:
    bert = make_models(tmp_path)["bert"]
    base = bert.write(tmp_path / "base", encoder=True)
    experts = {name: bert.write(tmp_path / name, seed) for seed, name in ((1, "a"), (2, "b"))}
    merged = fusion.merge("task_arithmetic", base, experts, scale=0.0)
    assert_same_bits(merged, {n: load_file(base / "model.safetensors")[n] for n in merged})


def test_an_adapter_of_the_base(tiny_pool: TinyPool, tmp_path: Path) -> None:
    base = tiny_pool.root / "base"
    adapter = write_adapter(tmp_path / "adapter", base, seed=1, rank=2)
    merged = fusion.merge("task_arithmetic", base, {"a": adapter}, scale=1.0)
    origin = load_file(base / "model.safetensors")
    changed = {name for name in merged if not torch.equal(merged[name], origin[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)


def test_a_folder_that_is_not_there(tiny_pool: TinyPool) -> None:
    with pytest.raises(InputError, match=r"pool\.experts\.a: '/nowhere': no such folder"):
        fusion.merge("ties", tiny_pool.root / "base", {"a": "/nowhere"})
