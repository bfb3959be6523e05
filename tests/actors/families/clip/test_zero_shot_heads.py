from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.artifacts.head_file import read_head
from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task, TaskSource, open_task
from actors.families.clip.zero_shot_heads import zero_shot_heads
from actors.families.registry import inspect
from actors.files.checksums import sealed
from fusion.errors import InputError


@pytest.fixture
def task(animals: Path) -> Task:
    templates = ["a photo of a {}.", "the {}"]
    return open_task(TaskSource("pets", str(animals), templates=templates))


@pytest.fixture
def base(tiny: Any, tmp_path: Path) -> Checkpoint:
    return inspect(str(tiny.base(tmp_path / "base")), "pool.base")


def test_equals_clip_model(base: Checkpoint, task: Task, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    head = read_head(zero_shot_heads(base, {"pets": task}, tmp_path)["pets"])
    model = CLIPModel.from_pretrained(base.folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(base.folder)
    rows = []
    with torch.inference_mode():
        for name in ("cat", "dog"):
            texts = [f"a photo of a {name}.", f"the {name}"]
            tokens = tokenizer(texts, padding=True, return_tensors="pt")
            unit = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output)
            rows.append(torch.nn.functional.normalize(unit.mean(0), dim=0))
        expected = torch.stack(rows) * model.logit_scale.exp()
    assert head.dtype == torch.float32
    torch.testing.assert_close(head, expected, rtol=1e-4, atol=1e-4)


def test_cached_under_all_that_it_depends_on(
    base: Checkpoint, tiny: Any, task: Task, tmp_path: Path
) -> None:
    (path,) = zero_shot_heads(base, {"pets": task}, tmp_path).values()
    stamp = path.stat().st_mtime_ns
    again = replace(task, name="other")
    assert zero_shot_heads(base, {"other": again}, tmp_path) == {"other": path}
    assert path.stat().st_mtime_ns == stamp
    changed = {
        "names": replace(task, classnames=("cat", "wolf")),
        "templates": replace(task, templates=("a {}",)),
    }
    found = set(zero_shot_heads(base, changed, tmp_path).values())
    other = inspect(str(tiny.base(tmp_path / "b", logit_scale=torch.tensor(1.0))), "pool.base")
    found |= set(zero_shot_heads(other, {"pets": task}, tmp_path).values())
    assert len(found | {path}) == 4
    assert all(file.suffix == ".safetensors" for file in (tmp_path / "heads").iterdir())


def test_a_prompt_that_is_too_long(base: Checkpoint, task: Task, tmp_path: Path) -> None:
    long = replace(task, templates=("word " * 30 + "{}",))
    with pytest.raises(
        InputError, match=r"task 'pets': prompt 'word .*tokens; the text tower has 77"
    ):
        zero_shot_heads(base, {"pets": long}, tmp_path)
    assert not list(tmp_path.glob("heads/*"))


def test_no_tokenizer(base: Checkpoint, task: Task, tmp_path: Path) -> None:
    for file in base.folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"pool.base: .*: no tokenizer"):
        zero_shot_heads(base, {"pets": task}, tmp_path)


def test_a_damaged_tokenizer(base: Checkpoint, task: Task, tmp_path: Path) -> None:
    (base.folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        zero_shot_heads(base, {"pets": task}, tmp_path)


def test_a_damaged_head(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_bytes(b"half")
    with pytest.raises(InputError, match="not a head"):
        read_head(file)


def test_names_that_the_tokenizer_takes_for_one(
    base: Checkpoint, task: Task, tmp_path: Path
) -> None:
    same = replace(task, classnames=("cat", "CAT"))
    with pytest.raises(InputError, match="task 'pets': classes 'cat' and 'CAT' have the same row"):
        zero_shot_heads(base, {"pets": same}, tmp_path)
    assert not list(tmp_path.glob("heads/*"))


@pytest.mark.parametrize("name", ["text_projection.weight", "logit_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_text_tower_that_is_not_finite(
    tiny: Any, task: Task, tmp_path: Path, name: str, value: float
) -> None:
    """All classes would have NaN as their logit, and each row would count as of class 0."""
    like = inspect(str(tiny.base(tmp_path / "like")), "pool.base").rest[name]
    broken = tiny.base(tmp_path / "broken", **{name: torch.full(like.shape, value)})
    with pytest.raises(InputError, match=rf"pool.base: .*tensor '{name}': .* are NaN or Inf"):
        zero_shot_heads(inspect(str(broken), "pool.base"), {"pets": task}, tmp_path)
    assert not list(tmp_path.glob("heads/*"))


def test_a_scale_whose_exponential_overflows(tiny: Any, task: Task, tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base", logit_scale=torch.tensor(100.0))
    with pytest.raises(InputError, match="task 'pets': NaN or infinity; finite numbers needed"):
        zero_shot_heads(inspect(str(base), "pool.base"), {"pets": task}, tmp_path)


def test_a_head_in_the_cache_that_is_not_finite_is_made_again(
    base: Checkpoint, task: Task, tmp_path: Path
) -> None:
    (path,) = zero_shot_heads(base, {"pets": task}, tmp_path).values()
    wanted = read_head(path)
    path.write_bytes(sealed({"head": torch.full_like(wanted, float("nan"))}, {}))
    zero_shot_heads(base, {"pets": task}, tmp_path)
    assert torch.equal(read_head(path), wanted)
