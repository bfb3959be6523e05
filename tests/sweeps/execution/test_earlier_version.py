"""A sweep's folder and recipes that an earlier version wrote: they resume, report and export.

`earlier_version/` holds a tiny pool, its data, a sweep file and the results of version 0.1.0 from
before its modules moved into sub-packages. Recipes name their models by path: `FIXTURE` in their
place is the folder of the test.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from sweeps.cli.main import app
from tests.sweeps.execution.test_run import comparison, sweeps

HERE = Path(__file__).parent / "earlier_version"
ONE_MODEL = ("task_arithmetic", "ties", "adamerging", "concrete_task_arithmetic")
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}
"""Of losses: another processor may add up in another order."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which the paths of the recipes are right."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results").rename(tmp_path / "outputs")
    for recipe in (tmp_path / "outputs/before/recipes").glob("*.yaml"):
        recipe.write_text(recipe.read_text().replace("FIXTURE", str(tmp_path)))
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_reported(folder: Path) -> None:
    done = CliRunner().invoke(app, ["report", "outputs/before", "--html", "page.html"])
    assert done.exit_code == 0, done.output
    page = (folder / "page.html").read_text()
    rows = json.loads((folder / "outputs/before/comparison.json").read_text())["rows"]
    assert len(rows) == 12
    for row in rows:
        assert row["method"] in page


@pytest.mark.parametrize("method", ONE_MODEL)
def test_its_recipes_are_exported(method: str, folder: Path) -> None:
    done = CliRunner().invoke(app, ["export", f"outputs/before/recipes/{method}.yaml", "fused"])
    assert done.exit_code == 0, done.output
    fused, base = (load_file(folder / at / "model.safetensors") for at in ("fused", "pool/base"))
    assert fused.keys() == base.keys()
    changed = [name for name in base if not fused[name].equal(base[name])]
    assert changed
    assert all(name.startswith(("vision_model", "visual_projection")) for name in changed)


def test_task_arithmetic_is_exported_to_the_bit(folder: Path) -> None:
    recipe = (folder / "outputs/before/recipes/task_arithmetic.yaml").read_text()
    assert "scale: 0.3" in recipe
    done = CliRunner().invoke(app, ["export", "outputs/before/recipes/task_arithmetic.yaml", "x"])
    assert done.exit_code == 0, done.output
    base = load_file(folder / "pool/base/model.safetensors")
    experts = [
        load_file(folder / f"pool/experts/{task}/model.safetensors")
        for task in ("lines", "tones", "blobs")
    ]
    for name, fused in load_file(folder / "x/model.safetensors").items():
        if name not in experts[0]:
            assert fused.equal(base[name])
            continue
        exact = base[name].double()
        exact = exact + 0.3 * sum(expert[name].double() - exact for expert in experts)
        assert (fused.double() - exact).abs().max() < 1e-6


@pytest.mark.ray
@pytest.mark.slow
def test_it_is_resumed(folder: Path) -> None:
    """A trial that is missing runs again; all others are taken as they are."""
    wrote = json.loads((HERE / "libraries.json").read_text())
    here = {name: ".".join(version(name).split("+")[0].split(".")[:2]) for name in wrote}
    if here != wrote:
        pytest.skip(f"trial keys hold the libraries' versions: written with {wrote}, here {here}")
    ledger = folder / "outputs/before/ledger"
    before = {path.name: json.loads(path.read_text()) for path in ledger.glob("*.json")}
    again = next(name for name, entry in before.items() if entry["params"].get("scale") == 0.1)
    (ledger / again).unlink()
    kept = {name: (ledger / name).read_bytes() for name in before if name != again}
    expected = comparison(folder / "outputs/before")

    done = sweeps("run", "sweep.yaml", "--resume", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path.name: json.loads(path.read_text()) for path in ledger.glob("*.json")}
    assert after.keys() == before.keys()
    assert {name: (ledger / name).read_bytes() for name in kept} == kept
    for figure, value in before[again]["metrics"].items():
        assert after[again]["metrics"][figure] == pytest.approx(value, **TOLERANCE)
    found = comparison(folder / "outputs/before")
    assert [row["method"] for row in found["rows"]] == [r["method"] for r in expected["rows"]]
    for old, new in zip(expected["rows"], found["rows"], strict=True):
        assert new["params"] == old["params"]
        assert new["test"] == pytest.approx(old["test"], **TOLERANCE)
        assert new["val"] == pytest.approx(old["val"], **TOLERANCE)
