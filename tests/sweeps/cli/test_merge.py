"""`sweeps merge`: a model folder from folders, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

import sweeps
from fusion.errors import InputError
from sweeps.cli.merge import parsed
from sweeps.results.export.from_recipe import export
from tests.fusion.laws import assert_same_bits
from tests.sweeps.program import in_process
from tests.tiny_bert import make_models
from tests.tiny_pool import TinyPool


@pytest.fixture
def given(tiny_pool: TinyPool) -> list[str]:
    root = tiny_pool.root
    return [str(root / "base"), str(root / "experts" / "lines"), f"b={root}/experts/tones"]


def test_a_folder_that_transformers_loads(given: list[str], tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    done = in_process("merge", "ties", *given, "-o", "out", "--set", "density=0.5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "loading torch …\nmerging 2 experts, writing the folder …\nout\n"
    out = tmp_path / "out"
    _, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert CLIPProcessor.from_pretrained(out) is not None
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (written["method"], written["params"]) == ("ties", {"density": 0.5})
    assert list(written["experts"]) == ["lines", "b"]
    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["merge", "model-merging", "fusion-sweeps", "ties"]
    assert f"sweeps merge ties {given[0]} lines={given[1]} {given[2]} -o OUT_DIR" in card.text
    export(out / "recipe.yaml", tmp_path / "again")
    assert_same_bits(
        load_file(tmp_path / "again" / "model.safetensors"), load_file(out / "model.safetensors")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out"]


def test_texts_an_average_by_hand(tmp_path: Path) -> None:
    bert = make_models(tmp_path)["bert"]
    base = bert.write(tmp_path / "base", encoder=True)
    one, two = (bert.write(tmp_path / name, seed) for seed, name in ((1, "one"), (2, "two")))
    found = sweeps.merge(
        "simple_average", base, {"a": one, "b": two}, tmp_path / "out", result_dtype="float32"
    )
    merged = load_file(found / "model.safetensors")
    first, second = (load_file(each / "model.safetensors") for each in (one, two))
    for name, tensor in merged.items():
        if tensor.is_floating_point() and f"bert.{name}" in first:
            wanted = (first[f"bert.{name}"].double() + second[f"bert.{name}"].double()) / 2
            torch.testing.assert_close(tensor.double(), wanted, rtol=0, atol=1e-6)
    assert "encoder.layer.1.output.dense.weight" in merged
    assert (found / "tokenizer.json").exists()


def test_one_model_a_task_is_one_folder_a_task(given: list[str], tmp_path: Path) -> None:
    assert in_process("merge", "emr", *given, "-o", "out", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b", "lines"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tys"], "unknown method 'tys'; did you mean 'ties'?"),
        (["ties", "--set", "density=2.0"], "ties: density: 2.0; float in [0, 1] allowed"),
        (["ties", "--set", "densty=1"], "ties: unknown parameter 'densty'; did you mean 'density'"),
        (["ties", "--set", "density"], "--set density: 'key=value' needed, as in density=0.2"),
        (["fisher"], "fisher: needs rows of the fit split of each task, which weights alone"),
        (["ties", "--result-dtype", "int8"], "result_dtype: 'int8'; base or float32 allowed"),
    ],
)
def test_refused_in_one_line_with_nothing_written(
    words: list[str], message: str, given: list[str], tmp_path: Path
) -> None:
    method, *options = words
    done = in_process("merge", method, *given, "-o", "out", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_models_at_fault_leave_nothing(given: list[str], tmp_path: Path) -> None:
    def refused(*sources: str) -> str:
        done = in_process("merge", "ties", *sources, "-o", "out", cwd=tmp_path)
        assert done.returncode == 2
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return done.stderr

    assert "no such folder" in refused(given[0], "/nowhere")
    assert "the name 'lines' of another: write name=" in refused(given[0], given[1], given[1])
    state = load_file(Path(given[1]) / "model.safetensors")
    state[next(name for name in state if name.endswith("fc1.weight"))][0] = torch.nan
    broken = tmp_path / "broken"
    shutil.copytree(given[1], broken)
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    assert "fc1.weight': 32 of 2048 are NaN or Inf" in refused(given[0], given[2], str(broken))


def test_an_existing_folder_is_kept(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = in_process("merge", "ties", *given, "-o", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "out: is there already; give a new folder\n")


def test_values_of_set() -> None:
    assert parsed(["a=[1, 2]", "b=true"]) == {"a": [1, 2], "b": True}
    with pytest.raises(InputError, match="a is given twice"):
        parsed(["a=1", "a=2"])


def test_hub_ids_are_resolved_as_in_sweep_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bert = make_models(tmp_path)["bert"]
    base = bert.write(tmp_path / "base", encoder=True)
    home = tmp_path / "hub" / "models--org--a"
    bert.write(home / "snapshots" / ("a" * 40), 1)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    out = sweeps.merge("task_arithmetic", base, {"a": "org/a"}, tmp_path / "out", scale=1.0)
    merged = load_file(out / "model.safetensors")
    expert = load_file(home / "snapshots" / ("a" * 40) / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(merged[name], expert[f"bert.{name}"])
    assert yaml.safe_load((out / "recipe.yaml").read_text())["experts"]["a"]["source"] == "org/a"
    assert "org/a" in ModelCard.load(out / "README.md").data.base_model
    with pytest.raises(InputError, match=r"pool\.experts\.b: 'org/b': no such folder; as a hub id"):
        sweeps.merge("ties", base, {"b": "org/b"}, tmp_path / "none")
    assert not (tmp_path / "none").exists()
