"""Once a comparison is on disk, nothing that shows it fails the sweep."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sweeps.console.optional import aside
from sweeps.execution.publish import publish
from sweeps.execution.sweep_run import SweepRun
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import Entry
from sweeps.tracking.tracker import Tracker

STEPS = {
    "write_table": "comparison.parquet",
    "keep_examples": "the report's examples",
    "write_html": "report.html",
    "write_tables": "surfaces",
    "write_studies": "optuna.journal",
    "static_figures.draw": "plots",
    "markdown.described": "the note in MLflow",
    "totals": "the sums in MLflow",
    "winner": "the model ties in MLflow",
    "finish": "the sweep's run in MLflow",
}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A comparison that is there, and what is done with it."""
    row = Row(
        "ties", "static", {"density": 0.2}, 1, {"acc/mean": 0.5}, {"acc/mean": 0.5}, trial_key="k"
    )
    comparison = replace(compare(Header("s", "h", "val"), [row], {}), tasks=("a",))
    done = []
    tracker = SimpleNamespace(
        winner=lambda *_, **__: done.append("winner"),
        finish=lambda status, *_, **__: done.append(status),
    )
    tasks = {"a": SimpleNamespace(fingerprint="f" * 64, classnames=("x", "y"))}
    spec = SimpleNamespace(name="s", metric="acc/mean", mode="max", methods={}, references={})
    prepared = SimpleNamespace(spec=spec, tasks=tasks, splits=SimpleNamespace(report="test"))
    trials = [
        Entry("k", "ties", "static", {"density": density}, "done", "select", {"acc/mean": 0.5},
              started="2026-01-02T03:04:05+00:00")
        for density in (0.1, 0.2)
    ]  # fmt: skip
    monkeypatch.setattr(SweepRun, "entries", lambda sweep: trials)
    said = []
    progress = SimpleNamespace(say=said.append)
    sweep = SweepRun(prepared, SweepFolder(tmp_path), None, None, tracker, None, progress)
    return sweep, comparison, done, said


def test_all_of_it_is_made(sweep, tmp_path):
    sweep, comparison, done, said = sweep
    publish(sweep, comparison)
    assert (said, done) == ([], ["winner", "FINISHED"])
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"comparison.parquet", "report.html", "comparison.png", "optuna.journal"} <= made


@pytest.mark.parametrize(
    ("step", "error"),
    [
        *((step, ValueError("two\nlines")) for step in STEPS),
        ("write_html", MemoryError()),
        ("finish", OSError(28, "full")),
    ],
)
def test_each_step_that_fails_is_a_line_and_the_others_are_made(
    sweep, tmp_path, monkeypatch, step, error
):
    sweep, comparison, done, said = sweep
    (tmp_path / "report.html").write_text("of an earlier comparison")

    def fails(*_, **__):
        raise error

    if step in ("winner", "finish"):
        monkeypatch.setattr(sweep.tracker, step, fails)
    else:
        monkeypatch.setattr(f"sweeps.execution.publish.{step}", fails)
    publish(sweep, comparison)
    assert len(said) == 1
    assert said[0].startswith(f"{STEPS[step]} could not be made: ")
    assert "\n" not in said[0]
    assert done == [each for each in ("winner", "FINISHED") if (step, each) not in FAILED]
    old = (tmp_path / "report.html").exists() and (tmp_path / "report.html").read_text()
    assert old != "of an earlier comparison"


FAILED = {("winner", "winner"), ("finish", "FINISHED")}


def test_what_fails_before_there_are_results_is_raised_and_a_stop_always(tmp_path):
    said = []
    with pytest.raises(ValueError, match="x"), aside("it", "y", said.append, done=lambda: False):
        raise ValueError("x")
    with pytest.raises(KeyboardInterrupt), aside("it", "y", said.append):
        raise KeyboardInterrupt
    assert not said


class Picky:
    """A store that takes no artifact, or none of some name."""

    def __init__(self, refused: str) -> None:
        self.refused, self.calls = refused, []

    def __getattr__(self, name):
        def call(*given, **_):
            self.calls.append((name, *given))
            if name == self.refused or any(self.refused in str(each) for each in given[1:]):
                raise ValueError(f"{self.refused} is not taken")
            return SimpleNamespace(
                info=SimpleNamespace(run_id="r", start_time=0),
                data=SimpleNamespace(metrics={}, tags={}),
                token=None,
            )

        return call

    def search_runs(self, *_, **__):
        class Page(list):
            token = None

        return Page()


@pytest.mark.parametrize("refused", ["b.png", "log_artifact", "set_tag", "log_batch", "log_inputs"])
def test_what_mlflow_does_not_take_keeps_nothing_else_back(tmp_path, refused):
    client = Picky(refused)
    sent = Tracker(client, "0", "s", "id", {}, patience=0.2, say=lambda line: None)
    files = [tmp_path / name for name in ("a.json", "b.png", "c.yaml")]
    sent.finish("FINISHED", {"x": 1.0}, files, note="n", datasets={"a": "d"})
    assert sent.fault == f"{refused} is not taken"
    calls = [call[:3] for call in client.calls]
    assert ("set_terminated", "r") in [call[:2] for call in calls]
    for file in files:
        assert ("log_artifact", "r", str(file)) in calls
    assert "set_experiment_tag" in [call[0] for call in calls] or refused == "set_tag"
