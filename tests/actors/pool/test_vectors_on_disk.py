"""Task vectors that stay in files: the numbers of loaded ones, and what becomes of lost files."""

import os
import pickle
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.families.clip.architecture import PROJECTION
from actors.families.registry import inspect
from actors.pool.pool import Pool, load_flat, open_pool, task_vectors
from actors.pool.vectors_on_disk import file_vectors, filed_vectors, opened_vectors
from actors.shards.shard import Shard, Weights
from fusion.errors import InputError, Vanished
from fusion.merged_layers.functional import Form
from fusion.registry import METHODS, Static
from fusion.task_vectors.coding import mix
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors
from tests.actors.conftest import sent
from tests.fusion import laws

KEY = "encoder.layers.0.mlp.fc1.weight"

Folders = tuple[str, dict[str, str]]


class Watched:
    """A change of task vectors that changes nothing, and counts how many are alive."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.most = 0

    def __call__(self, name: str, deltas: torch.Tensor) -> torch.Tensor:
        copy = deltas.clone()
        # Of the memory, which views keep alive; a tensor object may go before them.
        self.made.append(weakref.ref(copy.untyped_storage()))
        self.most = max(self.most, self.alive())
        return copy

    def alive(self) -> int:
        return sum(ref() is not None for ref in self.made)


def both(pool: Pool) -> tuple[TaskVectors, TaskVectors]:
    """Loaded, and from files."""
    return task_vectors(pool), opened_vectors(sent(file_vectors(pool)))


def assert_same(found: TaskVectors, wanted: TaskVectors) -> None:
    """The same names, order, dtypes and bits."""
    assert found.tasks == wanted.tasks
    assert found.groups == wanted.groups
    laws.assert_same_bits(found.base, wanted.base)
    laws.assert_same_bits(dict(found.deltas.items()), wanted.deltas)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_the_bits_of_loaded_task_vectors(
    tiny: Any, tmp_path: Path, dtype: torch.dtype, threads: int
) -> None:
    base = tiny.base(tmp_path / "base", dtype)
    other = torch.bfloat16 if dtype == torch.float16 else torch.float32
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    moved = tower | {PROJECTION: tiny.state[PROJECTION] + 1}
    experts = {
        "b": tiny.expert(tmp_path / "b", 1, dtype),
        "a": tiny.expert(tmp_path / "a", 2, other),
        "projected": tiny.write(tmp_path / "c", moved),
    }
    pool = open_pool(str(base), {name: str(folder) for name, folder in experts.items()})
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loaded, filed = both(pool)
        assert_same(filed, loaded)
        with torch.inference_mode():
            assert torch.equal(filed.deltas[KEY], loaded.deltas[KEY])
    finally:
        torch.set_num_threads(before)
    assert not filed.deltas[PROJECTION][:2].any()
    names = list(pool.names)[3:9]
    part = opened_vectors(file_vectors(pool, only=names))
    assert_same(replace(part, groups=loaded.groups), loaded.restrict(names))
    assert_same(filed.restrict(names), loaded.restrict(names))


def test_what_travels_is_the_base_and_names(pool_folders: Folders) -> None:
    pool = open_pool(*pool_folders)
    filed, counted = file_vectors(pool), []
    assert filed.flat.nbytes == pool.base_bytes
    assert len(pickle.dumps(filed)) < pool.base_bytes + 10**5
    file_vectors(pool, advance=counted.append)
    assert sum(counted) == pool.read_bytes


@pytest.mark.parametrize(
    "trim", [Trim(0.3, elect=True), Trim(0.4), Trim(0.5, dtype="float16")], ids=str
)
def test_trims_are_the_same_and_made_when_read(pool_folders: Folders, trim: Trim) -> None:
    loaded, filed = both(open_pool(*pool_folders))
    cut = run_surveys([trim_survey(loaded, trim)])
    assert run_surveys([trim_survey(filed, trim)]) == cut
    assert_same(trimmed(filed, trim, cut), trimmed(loaded, trim, cut))


def test_ties_holds_one_tensor_at_a_time(pool_folders: Folders) -> None:
    """Of a TIES survey: no two tensors' task vectors are alive at once."""
    pool = open_pool(*pool_folders)
    filed = filed_vectors(pool)
    watched, method = Watched(), METHODS["ties"]
    assert isinstance(method, Static)
    for params in ({"density": 0.3}, {"density": 0.3, "compat": "fusionbench"}):
        method.merge(filed.altered(watched), **params)
    assert len(watched.made) > 4 * len(pool.groups)
    assert watched.most == 1


@pytest.mark.parametrize("form", ["A", "B"])
def test_between_forward_and_backward_no_task_vectors_are_kept(
    pool_folders: Folders, form: Form
) -> None:
    pool = open_pool(*pool_folders)
    watched = Watched()
    vectors = opened_vectors(file_vectors(pool)).altered(watched)
    shard = Shard(pool.base, vectors, {})
    shard.mixer.form = form
    given = Weights("", coding=torch.full((1, 3, 1), 0.3))
    carry = {"pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}
    for call in (
        lambda: shard.forward("k", carry, given),
        lambda: shard.backward("k", carry, given, {"output": torch.ones(2, 24)}),
    ):
        watched.made.clear()
        call()
        assert len(watched.made) >= len(pool.groups)
        assert watched.alive() == 0
    assert watched.most == 1


@pytest.mark.parametrize("fault", ["nan", "text", "ids", "base"])
def test_what_loading_refuses_is_refused_in_the_same_words(
    tiny: Any, tmp_path: Path, fault: str
) -> None:
    base = tiny.base(tmp_path / "base")
    tower = {f"vision_model.{name}": tensor for name, tensor in tiny.vision(1).items()}
    spoiled = tiny.vision(1)[KEY].clone()
    spoiled[3, 4] = float("nan")
    if fault == "nan":
        expert = tiny.write(tmp_path / "a", tower | {f"vision_model.{KEY}": spoiled})
    elif fault == "text":
        full = {**tiny.state, **tower}
        expert = tiny.write(tmp_path / "a", full | {"logit_scale": torch.tensor(3.0)})
    elif fault == "ids":
        ids = torch.zeros(1, 5, dtype=torch.int64)
        key = "vision_model.embeddings.position_ids"
        expert = tiny.write(tmp_path / "a", tower | {key: ids})
    else:
        expert = tiny.expert(tmp_path / "a", 1)
        base = tiny.base(tmp_path / "bad", **{f"vision_model.{KEY}": spoiled})
    pool = open_pool(str(base), {"a": str(expert)})
    with pytest.raises(InputError) as loading:
        load_flat(pool)
    with pytest.raises(InputError) as filing:
        file_vectors(pool)
    assert str(filing.value) == str(loading.value)


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replace_by_another(file: Path) -> None:
    """Of the same size and times: only the inode tells."""
    about = file.stat()
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.replace(file)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def write_in_place(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\1\2\3\4")


HARMS: list[tuple[Callable[[Path], None], str]] = [
    (remove, "No such file or directory"),
    (truncate, "not the file that was checked at the start"),
    (replace_by_another, "not the file that was checked at the start"),
    (write_in_place, "not the file that was checked at the start"),
]


@pytest.mark.parametrize(("harm", "said"), HARMS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_file_that_vanishes_or_changes_is_refused_by_name(
    pool_folders: Folders, harm: Callable[[Path], None], said: str
) -> None:
    """In the middle of a sweep, and by a replica that starts again."""
    pool = open_pool(*pool_folders)
    filed = file_vectors(pool)
    vectors = opened_vectors(filed)
    assert vectors.deltas[KEY].any()
    wanted = mix(task_vectors(pool), torch.tensor([[[0.3], [0.0], [0.6]]]))
    file = Path(pool_folders[1]["t1"]) / "model.safetensors"
    harm(file)
    restarted = opened_vectors(sent(filed))
    coding = torch.tensor([[[0.3], [0.0], [0.6]]])
    for each in (vectors, restarted):
        with pytest.raises(Vanished) as caught:
            each.deltas[KEY]
        text = str(caught.value)
        assert caught.value.member == "t1"
        laws.assert_same_bits(mix(each, coding), wanted)  # without a part of it, without it
        with pytest.raises(Vanished):
            mix(each, coding + 0.1)
        assert text.startswith(f"pool.experts.t1: {file}: ")
        assert said in text
        assert "placement.weights: files" in text
        assert "\n" not in text


def test_on_another_node_only_sizes_can_be_compared(pool_folders: Folders) -> None:
    pool = open_pool(*pool_folders)
    filed = file_vectors(pool, node="10.0.0.1")
    wanted = task_vectors(pool)
    file = Path(pool_folders[1]["t1"]) / "model.safetensors"
    replace_by_another(file)  # a copy, as another node may have it
    with pytest.raises(Vanished, match=r"at the start \(node 10\.0\.0\.1\)"):
        opened_vectors(filed, node="10.0.0.1").deltas[KEY]
    vectors = opened_vectors(filed, node="10.0.0.2")
    assert_same(vectors, wanted)
    replace_by_another(file)  # from then on, it must stay
    with pytest.raises(Vanished, match=r"t1/model\.safetensors: .*\(node 10\.0\.0\.2\)"):
        vectors.deltas[KEY]
    truncate(file)
    with pytest.raises(Vanished, match=r"t1/model\.safetensors: not .*\(node 10\.0\.0\.3\)"):
        opened_vectors(filed, node="10.0.0.3").deltas[KEY]


def test_a_node_that_sees_no_file_is_refused_at_once(pool_folders: Folders) -> None:
    pool = open_pool(*pool_folders)
    filed = file_vectors(pool, node="10.0.0.1")
    for folder in pool_folders[1].values():
        remove(Path(folder) / "model.safetensors")
    with pytest.raises(InputError, match=r"t0/model\.safetensors: No such .*\(node 10\.0\.0\.2\)"):
        opened_vectors(filed, node="10.0.0.2")


def test_a_header_that_lies_by_now_is_refused(tiny: Any, pool_folders: Folders) -> None:
    """Another model of the same size, there before the sweep's files are checked."""
    pool = open_pool(*pool_folders)
    folder = Path(pool_folders[1]["t0"])
    tiny.write(folder, {k: v.half() for k, v in tiny.vision(9).items()})
    assert inspect(str(folder), "t0").tensors[KEY].dtype == torch.float16
    with pytest.raises(InputError, match=r"t0/model\.safetensors"):
        file_vectors(pool)
