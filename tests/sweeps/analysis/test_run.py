"""`sweeps analyse` as a user runs it: a real pool on a real Ray; MLflow; wrong words."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from sweeps.analysis import run as analyse
from sweeps.analysis.core import finding
from sweeps.report.html import ANALYSIS, html
from sweeps.results.folder import Identity, SweepFolder
from sweeps.spec.sweep import load
from sweeps.tracking import mlflow_store
from sweeps.tracking.tracker import Tracker
from tests.sweeps.cli.test_main import call
from tests.sweeps.program import ONE, in_process, sweeps
from tests.sweeps.report.test_html import finished, trials

PARTS = tuple(analyse.PARTS)


def pool_of(tiny_pool, folder: Path) -> Path:
    """The pool's three experts as ingredients of one task, with what they were trained with."""
    content = tiny_pool.spec()
    content["pool"]["experts"] = {}
    for at, (name, source) in enumerate(tiny_pool.spec()["pool"]["experts"].items()):
        place = folder / "ingredients" / name
        shutil.copytree(source, place)
        recipe = {"params": {"learning_rate": 10.0 ** (at - 5), "epochs": 4}, "seed": at}
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        content["pool"]["experts"][f"run_{name}"] = str(place)
    content["tasks"] = {"shapes": content["tasks"]["blobs"]}
    content["methods"] = {"uniform_soup": {}}
    data = Path(content["tasks"]["shapes"]["dataset"])
    (folder / "reported").mkdir()
    shutil.copy(data / "test.parquet", folder / "reported")
    content["shifts"] = {
        "noise": {"corruption": "gaussian_noise", "severity": 5},
        "lines": {"dataset": str(data.parent / "lines")},  # two classes as well
        "reported": {"dataset": str(folder / "reported")},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def analysed(tiny_pool, tmp_path_factory, ray_cluster) -> Path:
    """Where a finished analysis lies."""
    cwd = tmp_path_factory.mktemp("analysed")
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    done = in_process("analyse", pool_of(tiny_pool, cwd), "--size", 5, *ONE, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plane: 28/28" in done.stdout
    assert "diagnosis: Learning rates reach from 1e-05 to 0.001" in done.stdout
    assert "not logged: there is no sweep of this name yet" in done.stdout
    assert "robustness: Shift set 'reported' is left out" in done.stdout
    return cwd


@pytest.mark.ray
@pytest.mark.slow
def test_an_analysis_of_a_real_pool(analysed):
    folder = analysed / "outputs/tiny/analysis"
    for part in PARTS:
        assert json.loads((folder / f"{part}.json").read_text())["tables"], part
    marks = {row["model"]: row for row in pq.read_table(folder / "plane-marks.parquet").to_pylist()}
    points = pq.read_table(folder / "plane-points.parquet").to_pylist()
    assert len(points) == 25
    assert len(marks) == 3
    assert "pretrained" in marks
    (gain,) = [
        row for row in pq.read_table(folder / "grid-gains.parquet").to_pylist()
        if (row["first"], row["second"]) == ("run_lines", "run_blobs")
    ]  # fmt: skip
    assert (gain["first_value"], gain["second_value"]) == (1e-5, 1e-3)
    assert "data:image/png;base64," in (folder / "analysis.html").read_text()
    assert (folder / "plots/plane-loss.png").stat().st_size > 10_000
    (head,) = folder.rglob("*.safetensors")  # the linear probe: no model is ever written
    assert head.stat().st_size < 10_000


@pytest.mark.ray
@pytest.mark.slow
def test_what_was_measured_is_what_the_models_give(analysed):
    """Angles and losses again, from the weights themselves."""
    import torch
    from safetensors.torch import load_file

    folder = analysed / "outputs/tiny/analysis"
    spec = yaml.safe_load((analysed / "tiny.yaml").read_text())
    base = load_file(Path(spec["pool"]["base"]) / "model.safetensors")
    a, b = (
        load_file(Path(spec["pool"]["experts"][name]) / "model.safetensors")
        for name in ("run_lines", "run_tones")
    )
    vision = [
        name for name in a if name.startswith("vision_model.") and a[name].is_floating_point()
    ]
    one, two = (
        torch.cat([(model[name] - base[name]).double().flatten() for name in vision])
        for model in (a, b)
    )
    angle = torch.arccos(one @ two / one.norm() / two.norm()).rad2deg()
    (row,) = [
        row for row in pq.read_table(folder / "gram-angles.parquet").to_pylist()
        if (row["first"], row["second"]) == ("run_lines", "run_tones")
    ]  # fmt: skip
    assert row["angle"] == pytest.approx(float(angle), abs=1e-4)
    single = {row["expert"]: row for row in
              pq.read_table(folder / "gram-experts.parquet").to_pylist()}  # fmt: skip
    marks = pq.read_table(folder / "plane-marks.parquet").to_pylist()
    for mark in marks[1:]:  # all of select is fewer than 1000 images: the probe is the same rows
        assert mark["loss"] == single[mark["model"]]["nll/mean"]


@pytest.mark.ray
@pytest.mark.slow
def test_under_shift_nothing_that_is_reported_is_looked_at(analysed):
    """Ends of the paths against the models themselves, on rows of select's side."""
    folder = analysed / "outputs/tiny/analysis"
    rows = pq.read_table(folder / "robustness-points.parquet").to_pylist()
    assert {row["set"] for row in rows} == {"noise", "lines", "mean"}
    assert {row["curve"] for row in rows} == {"end to end", "linear classifier", "model"}
    single = {row["expert"]: row["acc/mean"] for row in
              pq.read_table(folder / "gram-experts.parquet").to_pylist()}  # fmt: skip
    for row in rows:
        if row["curve"] == "model":
            assert row["reference"] == single[row["model"]]
    ends = {row["curve"]: row for row in rows if row["alpha"] == 0 and row["set"] == "noise"}
    assert ends["end to end"]["shift"] == ends["linear classifier"]["shift"]
    about = json.loads((folder / "robustness.json").read_text())["about"]
    assert "noise: the same images under gaussian_noise, severity 5" in about
    assert "lines, a part of split train" in about
    assert (folder / "plots/robustness-sets.png").stat().st_size > 10_000


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # three commands that start Ray: 260 s on a quiet machine
def test_a_plane_that_is_killed_goes_on_to_the_same_points(analysed, tmp_path):
    spec = shutil.copy(analysed / "tiny.yaml", tmp_path / "tiny.yaml")
    words = ("analyse", spec, "--only", "plane", "--size", 21)
    whole = sweeps(*words, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    table = tmp_path / "outputs/tiny/analysis/plane-points.parquet"
    expected = pq.read_table(table).to_pylist()
    shutil.rmtree(tmp_path / "outputs")
    kept = tmp_path / "outputs/tiny/analysis/points"
    driver = subprocess.Popen(
        [sys.executable, "-m", "sweeps", *map(str, words)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list(kept.glob("*-probe1000.json")):
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    (file,) = kept.glob("*-probe1000.json")
    found = len(json.loads(file.read_text()))
    assert 0 < found < 444
    assert not table.exists()
    again = sweeps(*words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert pq.read_table(table).to_pylist() == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "gram,plain"), "--only: unknown part 'plain'; did you mean 'plane'?"),
        (("--plane", "lines,tone"), "--plane: unknown expert 'tone'; did you mean 'tones'?"),
        (("--plane", "lines"), "--plane: 'lines': FIRST,SECOND or ORIGIN,FIRST,SECOND allowed"),
        (("--pair", "lines,lines"), "--pair: lines,lines: two different experts needed"),
        (("--pair", "best,lines"), "--pair: unknown expert 'best'"),
        (("--path", "tone"), "--path: unknown expert with a task of its own 'tone'; did you mean"),
    ],
)
def test_wrong_words_are_one_line(tiny_pool, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    status, _, fault = call(monkeypatch, capsys, "analyse", spec, *words)
    assert (status, fault.count("\n")) == (2, 1), fault
    assert said in fault
    assert not (tmp_path / "outputs").exists()


def test_an_analysis_is_logged_with_the_sweep_s_own_run(tiny_pool, tmp_path):
    spec = load(tiny_pool.write(tmp_path / "tiny.yaml"))
    folder = SweepFolder(tmp_path / "tiny")
    path = tmp_path / "tiny/analysis/gram.json"
    finding.write(finding.Finding("gram", "x", "about"), path.parent)
    files = [(path, "analysis")]
    assert "no sweep of this name" in analyse.logged(spec, tmp_path, folder, files)
    folder.identity.write_text(Identity("id1", "hash", "now").dump())
    assert "has no run of this sweep" in analyse.logged(spec, tmp_path, folder, files)
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    sent = Tracker(client, experiment, "tiny", "id1", {}, patience=0.2)
    sent.finish("FINISHED", {}, [])
    for _ in range(2):  # again is no fault
        assert analyse.logged(spec, tmp_path, folder, files).startswith("sqlite:")
    (run,) = client.search_runs([experiment])
    assert [each.path for each in client.list_artifacts(run.info.run_id, "analysis")] == [
        "analysis/gram.json"
    ]
    away = spec.model_copy(update={"mlflow": spec.mlflow.model_copy(
        update={"tracking_uri": "http://127.0.0.1:9"})})  # fmt: skip
    assert analyse.logged(away, tmp_path, folder, files).startswith("not logged: mlflow")


def test_the_report_links_to_the_analysis_that_is_there():
    entries = trials()
    assert f'href="{ANALYSIS}"' in html(finished(entries), entries, analysis=ANALYSIS)
    assert ANALYSIS not in html(finished(entries), entries)
