"""Generalisation and robustness: the shipped sweep files, and what may not be learned from."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from actors.cluster.planner import Node, Resources
from actors.data.images.inputs import ImageInputs
from actors.data.images.pixel_cache import open_pixels
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.preprocess import Preprocess
from actors.data.images.shifted_pixels import chunk
from actors.data.task import Splits, TaskSource, assign, open_task
from actors.data.task_rows import Rows, TaskData, tasks_with
from actors.experts.evaluation import Evaluation, TaskScore
from actors.experts.unseen_tasks import ADAPT, adapted_role, learners, measured, stays_with_seen
from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.cli import plan
from sweeps.cluster import ray_connection
from sweeps.planning.shift_data import adapted_rows
from sweeps.report import shift_table, significance_text
from sweeps.report.charts import static_figures
from sweeps.report.html import html
from sweeps.report.terminal_table import render
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.comparison_file import read, write, write_table
from sweeps.results.rows.disclosures import notes_of, under_words
from sweeps.spec.shift import ShiftSpec
from sweeps.spec.sweep import SplitSpec, dump, load, spec_hash, validate
from sweeps.spec.trial_key import Context, trial_key
from sweeps.tracking import markdown
from tests.sweeps.planning.test_published import hollow

CONFIGS = Path("sweeps/configs")
GPU = Resources((Node(16, 1, 128 * 10**9, 80 * 10**9),))

EXP1 = {"sun397", "stanford_cars", "resisc45", "dtd", "svhn", "gtsrb"}
EXP2 = {"sun397", "stanford_cars", "gtsrb", "eurosat", "dtd", "mnist"}
TA8 = EXP1 | EXP2
SEVEN = {"motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast",
         "jpeg_compression"}  # fmt: skip
FOUR = {"stanford_cars", "eurosat", "resisc45", "gtsrb"}


@pytest.fixture(scope="module")
def local(tiny_pool, tmp_path_factory):
    """A shipped file with local folders for what it names; weights are files of holes."""
    root = tmp_path_factory.mktemp("published")
    base, expert = hollow(root / "base", {}, full=True), hollow(root / "expert", {}, full=False)
    data = str(tiny_pool.root / "data" / "lines")

    def of(name: str):
        spec = load(CONFIGS / f"{name}.yaml").model_dump(mode="json")
        spec["pool"] = {"base": str(base),
                        "experts": dict.fromkeys(spec["pool"]["experts"], str(expert))}  # fmt: skip
        for task in spec["tasks"].values():
            task |= {"dataset": data, "classnames": ["flat", "steep"], "templates": ["a {}."]}
        if "dawe" in spec["methods"]:
            spec["methods"]["dawe"]["extractor"] = str(base)
        return validate(spec, "spec.yaml")

    return of


@pytest.mark.parametrize(("name", "seen"), [("exp1", EXP1), ("exp2", EXP2)])
def test_the_published_generalisation_experiments(name, seen, local, tmp_path, monkeypatch):
    spec = load(CONFIGS / f"generalisation_{name}_b32.yaml")
    assert set(spec.pool.experts) == seen
    assert set(spec.tasks) == TA8
    assert set(spec.unseen) == TA8 - seen
    assert spec.methods["task_arithmetic"].params == {"scale": 0.3}
    assert spec.methods["ties"].params == {"density": 0.2, "scale": 0.3}
    assert spec.methods["wemoe"].params["learning_rate"] == 2e-3
    said = planned(local(f"generalisation_{name}_b32"), tmp_path, monkeypatch)
    assert f"unseen      {', '.join(spec.unseen)}: no expert" in said


@pytest.mark.parametrize("name", ["robustness_b32_clean", "robustness_b32_corrupted"])
def test_the_published_robustness_experiments(name, local, tmp_path, monkeypatch):
    spec = load(CONFIGS / f"{name}.yaml")
    assert set(spec.pool.experts) == set(spec.tasks) == FOUR
    assert {shift.corruption for shift in spec.shifts.values()} == SEVEN
    assert spec.adapt_on_shift == (None if name.endswith("clean") else "gaussian_noise")
    said = planned(local(name), tmp_path, monkeypatch)
    under = " under gaussian_noise, severity 3" if spec.adapt_on_shift else ""
    assert f"adapts to report{under}: the images it is reported on" in said


@pytest.mark.parametrize("name", ["real8_unseen", "real8_robustness"])
def test_the_same_on_the_real_eight(name, local, tmp_path, monkeypatch):
    spec = load(CONFIGS / f"{name}.yaml")
    assert len(spec.pool.experts) == 8
    assert spec.unseen == (("pneumonia",) if name == "real8_unseen" else ())
    assert set(spec.shifts) == (set() if name == "real8_unseen" else SEVEN)
    planned(local(name), tmp_path, monkeypatch)


def planned(spec, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(ray_connection, "this_machine", lambda: GPU)
    console = Console(width=200, record=True)
    plan.show(spec, tmp_path, console)
    return console.export_text()


def spec_of(**changes):
    content = {
        "name": "s",
        "pool": {"base": "b", "experts": {"a": "x", "b": "y"}},
        "tasks": {name: {"dataset": name} for name in ("a", "b", "c")},
        "methods": {"task_arithmetic": {}},
    }
    return validate(content | changes, "s.yaml")


def test_a_mean_is_of_seen_tasks_where_some_are_unseen():
    assert spec_of().unseen == ("c",)
    assert spec_of().seen == ("a", "b")
    assert spec_of().metric == spec_of(metric="acc/mean").metric == "acc/seen"
    assert spec_of(metric="nll/mean").metric == "nll/seen"
    assert spec_of(metric="nll/mean").mode == "min"
    assert spec_of(metric="acc/b").metric == "acc/b"
    two = {"tasks": {name: {"dataset": name} for name in ("a", "b")}}
    assert spec_of(**two).metric == "acc/mean"
    # A pool whose names are no tasks' holds ingredients of all tasks.
    soup = spec_of(pool={"base": "b", "experts": {"run_0": "x", "run_1": "y"}})
    assert (soup.unseen, soup.metric) == ((), "acc/mean")
    import yaml

    assert validate(yaml.safe_load(dump(spec_of())), "again") == spec_of()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"metric": "acc/c"}, "metric: 'acc/c': no expert is of it, so nothing is chosen by it; "
                              "acc/seen, acc/a, acc/b, nll/seen, nll/a, nll/b allowed"),
        ({"metric": "acc/unseen"}, "unknown metric 'acc/unseen'"),
        ({"adapt_on_shift": "noise"}, "adapt_on_shift: 'noise': a corruption of all tasks among "
                                      "`shifts` needed: one that is there (`shifts` has none)"),
        ({"adapt_on_shift": "x", "shifts": {"n": {"corruption": "contrast"},
                                            "x": {"corruption": "contrast", "task": "a"}}},
         "adapt_on_shift: 'x': a corruption of all tasks among `shifts` needed: one of n"),
    ],
)  # fmt: skip
def test_what_may_not_be_chosen_by_or_adapted_to_is_refused_in_one_line(changes, line):
    with pytest.raises(InputError) as error:
        spec_of(**changes)
    (said,) = str(error.value).splitlines()
    assert line in said


def scores(**right: tuple[int, int]) -> Mapping[str, TaskScore]:
    return {
        task: TaskScore(np.arange(n) < hits, float(n - hits)) for task, (hits, n) in right.items()
    }


def test_metrics_of_seen_and_unseen_tasks_by_hand():
    given = scores(a=(1, 4), b=(3, 4), c=(4, 4))
    plain = Evaluation(given, 0.0, 0).metrics()
    assert not any("seen" in name for name in plain)
    found = Evaluation(given, 0.0, 0, frozenset("c")).metrics()
    assert found == plain | {
        "acc/seen": 0.5, "acc/unseen": 1.0, "nll/seen": 2.0, "nll/unseen": 0.0,
    }  # fmt: skip
    assert found["acc/mean"] == pytest.approx(2 / 3)
    select = Evaluation({k: v for k, v in given.items() if k != "c"}, 0.0, 0, frozenset("c"))
    assert select.metrics()["acc/mean"] == select.metrics()["acc/seen"] == 0.5
    assert "acc/unseen" not in select.metrics()
    assert Evaluation({}, 0.0, 0).metrics() == {}


def rows() -> Rows:
    return Rows(Path("p.arrow"))


DATA = {
    "a": TaskData("a", Path("h"), {"fit": rows(), "select": rows(), "report": rows()}),
    "c": TaskData("c", Path("h"), {"report": rows()}, unseen=True),
}


def test_an_unseen_task_is_measured_on_report_alone_and_learned_from_by_nobody():
    assert tasks_with(DATA, "select") == tasks_with(DATA, "fit") == ["a"]
    assert tasks_with(DATA, "report") == ["a", "c"]
    assert list(learners(DATA)) == ["a"]
    bare = {"a": replace(DATA["a"], rows={"report": rows()}), "c": DATA["c"]}
    with pytest.raises(KeyError, match="task 'a' has no rows of role 'select'"):
        tasks_with(bare, "select")


def test_methods_that_know_their_tasks_leave_unseen_ones_out_and_say_so():
    def on(method: str, **params) -> list[str]:
        return measured(DATA, ("a",), method, params, "report")

    assert on("ties") == on("adamerging") == on("dawin", granularity="sample") == ["a", "c"]
    assert on("experts") == on("emr") == on("tip_adapter") == on("dawin") == ["a"]
    assert on("dawin", granularity="sample", expertise="label") == ["a"]
    for method, row in METHODS.items():
        params = {p: 0.5 if p == "alpha" else "a" for p, q in row.parameters.items() if q.required}
        notes = notes_of(method, params, SplitSpec(), unseen=("c",))
        left = [note for note in notes if note.startswith("unseen tasks left out")]
        assert bool(left) == stays_with_seen(method, params), method
    assert notes_of("adamerging", {"adapt_on": "report"}, SplitSpec(), unseen=("c",)) == (
        "adapted to the unlabelled test images it is reported on, seen tasks alone",
    )


def test_what_was_adapted_to_is_in_the_notes_and_in_the_keys_of_methods_that_adapt():
    shifts = {"n": {"corruption": "contrast", "severity": 4}, "spatter": {"corruption": "spatter"}}
    assert under_words(spec_of(shifts=shifts)) == ""
    assert under_words(spec_of(shifts=shifts, adapt_on_shift="n")) == "n (contrast, severity 4)"
    under = under_words(spec_of(shifts=shifts, adapt_on_shift="spatter"))
    assert under == "spatter, severity 3"
    assert notes_of("adamerging", {"adapt_on": "report"}, SplitSpec(), under=under) == (
        "adapted to unlabelled test images of those it is reported on under spatter, severity 3",
    )
    assert "under spatter" in notes_of("regmean", {}, SplitSpec(), under=under)[0]
    assert notes_of("ties", {}, SplitSpec(), under=under) == ()
    clean, other = Context("c"), Context("c", under="k")
    changed = {m for m in ("ties", "dawe", "wemoe", "fisher", "learned_soup", "tip_adapter")
               if trial_key(m, {"extractor": "e"} if m == "dawe" else {}, clean)
               != trial_key(m, {"extractor": "e"} if m == "dawe" else {}, other)}  # fmt: skip
    assert changed == {"dawe", "wemoe", "fisher"}


def test_hashes_of_files_without_either_stay_as_they_were():
    two = {"tasks": {name: {"dataset": name} for name in ("a", "b")}}
    shifts = {"n": {"corruption": "contrast"}, "m": {"corruption": "contrast", "severity": 5}}
    assert spec_hash(spec_of(**two)) == "fef6e2a8fd6550b7"  # before there were unseen tasks
    given = [spec_of(**two, shifts=shifts, adapt_on_shift=name) for name in (None, "n", "m")]
    assert len({spec_hash(each) for each in given}) == 3


CORRECT = {
    "pretrained": {"a": "1100", "b": "1010", "c": "1110"},
    "ties": {"a": "1111", "b": "1110", "c": "1000"},
    "emr": {"a": "1111", "b": "1111"},
}


def comparison(**changes):
    correct = {
        row: {task: np.array([mark == "1" for mark in text]) for task, text in each.items()}
        for row, each in CORRECT.items()
    }
    noise = {"n": {"acc/mean": 0.1, "acc/seen": 0.25}}
    spans = {"n": {"acc/mean": (0.0, 0.2), "acc/seen": (0.125, 0.5)}}
    given = [
        Row("pretrained", "reference", val={"acc/mean": 0.5, "acc/seen": 0.5}, shifts=noise,
            shifts_ci95=spans),
        Row("ties", "static", val={"acc/mean": 0.8, "acc/seen": 0.8}, trials=1, shifts=noise),
        Row("emr", "static", val={"acc/mean": 0.9, "acc/seen": 0.9}, trials=1,
            notes=("unseen tasks left out: x",)),
    ]  # fmt: skip
    about = {"select_on": "val", "metric": "acc/seen", "tasks": ("c", "a", "b"), "unseen": ("c",)}
    return compare(Header("s", "h", **(about | changes)), given, correct)


def test_the_comparison_has_both_means_with_intervals_and_ranks_by_seen_tasks(tmp_path):
    found = comparison(adapt_on_shift="n")
    assert [row.method for row in found.rows] == ["pretrained", "ties", "emr"]
    base, ties, emr = found.rows
    assert (base.test["acc/seen"], base.test["acc/unseen"]) == (0.5, 0.75)
    assert (ties.test["acc/seen"], ties.test["acc/unseen"]) == (7 / 8, 0.25)
    assert ties.test["acc/mean"] == pytest.approx(2 / 3)
    assert "acc/unseen" not in emr.test
    low, high = ties.test_ci95["acc/unseen"]
    assert low < 0.25 < high
    assert (low, high) == pytest.approx(ties.test_ci95["acc/c"])  # of one task, its own
    assert (found.best, found.top) == (ties, emr)  # the winner is one model
    assert found.pairs[0].n == 8  # the unseen task's samples are not pooled in
    write(found, tmp_path)
    write_table(found, tmp_path)
    assert read(tmp_path) == found
    import pyarrow.parquet as pq

    columns = pq.read_table(tmp_path / "comparison.parquet").column_names
    assert {"test/acc/seen", "test_ci95/acc/unseen/low", "shift/n/acc/seen",
            "shift_ci95/n/acc/seen/low"} <= set(columns)  # fmt: skip
    assert json.loads((tmp_path / "comparison.json").read_text())["unseen"] == ["c"]


def test_every_table_has_both_means(tmp_path):
    found = comparison(adapt_on_shift="n")
    console = Console(width=220, record=True)
    render(found, console)
    shown = console.export_text()
    for text in ("test seen", "test unseen", "[95 % CI]", "c (unseen)", "n (adapted to)"):
        assert text in shown, text
    described = markdown.described(found)
    assert re.search(r" \[\d+\.\d,\u00a0\d+\.\d\] \|", described)  # a narrow column keeps it whole
    assert "| test seen | test unseen | c (unseen) | a | b |" in described
    assert "Methods that adapt to unlabelled rows saw those of n." in described
    page = html(found, ())
    assert '<th scope="col">unseen<small>mean of 1</small></th>' in page
    assert page.index(">a</th>") < page.index(">c<small>unseen</small></th>")  # seen ones first
    assert "n<small>adapted to</small>" in page
    assert static_figures.draw(found, tmp_path)
    assert shift_table.table(found)["lines"][1]["cells"][0] == {  # of the seen tasks
        "text": "25.0", "gain": "0.0", "interval": "12.5–50.0",
    }  # fmt: skip


def test_the_verdict_speaks_of_unseen_tasks():
    made = comparison()
    alone = replace(made, rows=tuple(
        replace(row, asked=row.method == "emr") for row in made.rows
    ))  # fmt: skip
    said = " ".join(significance_text.verdict(alone))
    assert "averaged over 2 seen tasks" in said
    assert "It is not measured on unseen tasks (c); the highest there is 25.0 % (ties)." in said
    said = " ".join(significance_text.verdict(made))
    assert "On unseen tasks (c) it has 25.0 %, pretrained 75.0 %." in said


def test_a_task_with_test_rows_alone_can_be_unseen(tiny_pool, tmp_path):
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / "test.parquet").symlink_to(tiny_pool.root / "data/blobs/test.parquet")
    task = open_task(TaskSource("blobs", str(folder)))
    assert set(assign(task, Splits(), roles=("report",))) == {"report"}
    with pytest.raises(InputError, match=r"splits\.fit: no split 'train'"):
        assign(task, Splits())


def test_rows_to_adapt_to_are_the_same_rows_under_shift(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (12, 3 * 28 * 28), dtype=np.uint8)
    file = tmp_path / "a.arrow"
    with PixelWriter([(file, 12, {"shape": "3,28,28"})], 3 * 28 * 28) as writer:
        writer.write(chunk(images, np.arange(12) % 5, 0))
    clean = Rows(file, np.array([1, 3, 5]))
    data = {
        "a": TaskData("a", Path("h"), {"fit": clean, "report": clean}),
        "c": TaskData("c", Path("h"), {"report": clean}, unseen=True),
    }
    shift, inputs = ShiftSpec(corruption="contrast"), ImageInputs(Preprocess(28, None, (28, 28)))
    found = adapted_rows(shift, inputs, data, dict.fromkeys(data), {"report"})
    assert adapted_role(found, "report") == f"{ADAPT}report"
    assert adapted_role(found, "fit") == adapted_role(data, "fit") == "fit"
    assert set(found["c"].rows) == {"report"}
    made = open_pixels(found["a"].rows[f"{ADAPT}report"].file)
    whole = open_pixels(clean.file)
    assert made.labels.tolist() == whole.labels[[1, 3, 5]].tolist()
    assert not np.array_equal(made.images.numpy(), whole.images[[1, 3, 5]].numpy())
