"""What the acceptance writes, and when; a GPU's results are written by a GPU alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.places import Place
from tests.gpu.report import ELSEWHERE, RESULTS, Found, Part, Report, Row, results_file, within

CPU = Place("cpu")
ROOT = Path(__file__).parents[2]


class Gpu:
    """Stands for a place with a GPU, whose limits hold."""

    kind, name, device = "cuda", "a GPU", "cuda"


def raised() -> Found:
    raise ValueError("a | b\nc")


def test_a_row_is_there_before_the_next_begins(tmp_path):
    report, seen = Report(tmp_path / "r.md", CPU, "made"), []

    def look() -> Found:
        seen.append(report.file.read_text())
        return within(0.5, 1.0, "well")

    rows = [Row("first", look), Row("second", look)]
    report.run(Part("checks", ("what", "found", "allowed", "note"), 9, lambda: rows))
    assert "| first |" not in seen[0]
    assert "| first | 5.00e-01 | ≤ 1 | well | right |" in seen[1]
    lines = [json.loads(line) for line in report.file.with_suffix(".jsonl").open()]
    assert [(line["row"], line["right"]) for line in lines] == [("first", True), ("second", True)]


def test_rows_that_are_wrong_or_raise_are_counted_and_stop_nothing(tmp_path):
    report = Report(tmp_path / "r.md", CPU, "made")

    def broken():
        yield Row("raises", raised)
        yield Row("off", lambda: within(2.0, 1.0))
        yield Row("measured", lambda: Found(("3 GB",)))
        raise OSError("no disk")

    report.run(Part("checks", ("what", "found"), 9, broken))
    report.run(Part("more", ("what", "found"), 9, lambda: [Row("fine", lambda: within(0, 1))]))
    report.end()
    text = report.file.read_text()
    assert report.wrong == 3
    assert "| raises | ValueError: a / b c | WRONG |" in text
    assert "| what the part needs | OSError: no disk | WRONG |" in text
    assert "| fine |" in text
    assert "3 wrong, 0 not run" in text


def test_on_a_gpu_rows_are_left_out_when_time_is_up(tmp_path):
    rows = [Row("late", raised), Row("later", raised)]
    for place, late in ((Gpu(), 2), (CPU, 0)):
        report = Report(tmp_path / f"{place.kind}.md", place, "made", seconds=-1)
        report.run(Part("checks", ("what", "found"), 9, lambda: rows))
        assert report.late == late
    assert "Not run, for want of time: late, later." in (tmp_path / "cuda.md").read_text()


def test_results_of_a_gpu_are_kept_and_others_are_not_among_them(tmp_path):
    assert results_file(Gpu(), "2030-01-02") == RESULTS / "gpu_2030-01-02.md"
    for kind, name in (("cpu", "cpu_as_gpu"), ("pretend", "pretended_gpu")):
        place = Gpu()
        place.kind = kind
        assert results_file(place, "2030-01-02") == ELSEWHERE / f"{name}_2030-01-02.md"
    (tmp_path / "gpu_d.md").touch()
    assert results_file(Gpu(), "d", tmp_path).name == "gpu_d-2.md"
    assert "No GPU was used" in Report(tmp_path / "r.md", CPU, "made").file.read_text()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(RuntimeError, match="no GPU here: --device cpu"):
        Place("cuda")
    with pytest.raises(RuntimeError, match="not installed"):
        Place("pretend")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_on_the_cpu(tiny_pool, tmp_path):
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--size", "tiny"]
    command += ["--pool", str(tiny_pool.root), "--out", str(tmp_path), "--threads", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "0 wrong, 0 not run" in done.stdout
