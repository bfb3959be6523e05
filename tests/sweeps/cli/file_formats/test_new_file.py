"""`sweeps init`: a commented sweep file that loads."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusion.errors import InputError
from sweeps.cli.file_formats.new_file import new_file
from sweeps.cli.main import app
from sweeps.spec.sweep import load


def test_the_file_loads_and_has_what_was_given(tmp_path: Path) -> None:
    out = new_file("org/vit-b32", ["org/vit-b32_mnist", "cars=models/my cars"], tmp_path / "a.yaml")
    spec = load(out)
    assert spec.name == "a"
    assert spec.pool.base == "org/vit-b32"
    assert spec.pool.experts == {"mnist": "org/vit-b32_mnist", "cars": "models/my cars"}
    assert list(spec.tasks) == ["mnist", "cars"]
    assert out.read_text().startswith("# A sweep over 2 experts.")


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([], "EXPERT: none given"),
        (["a/x", "b/x"], "'b/x': the name 'x' of another: write name=b/x"),
        (["a/ü"], "'a/ü': a name of letters"),
        (["x="], "'x=': a name of letters"),
    ],
)
def test_wrong_experts(tmp_path: Path, experts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_file("base", experts, tmp_path / "a.yaml")
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists; another name needed"):
        new_file("base", ["x"], tmp_path / "a.yaml")
    assert (tmp_path / "a.yaml").read_text() == "mine"


def test_a_file_whose_name_is_no_sweeps_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed before the suffix"):
        new_file("base", ["x"], tmp_path / "a b.yaml")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "a.yaml"
    result = CliRunner().invoke(app, ["init", "base", "x", "--out", str(out)])
    wanted = f"{out}: set the dataset of each task, then: sweeps plan {out}"
    assert (result.exit_code, result.stdout.replace("\n", "")) == (0, wanted)
    assert load(out).pool.experts == {"x": "x"}
