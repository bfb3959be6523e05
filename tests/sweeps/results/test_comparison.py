"""The comparison: its contract, its statistics by hand, its files."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from fusion import InputError
from sweeps.report.terminal_table import render
from sweeps.results import comparison_file
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.comparison_file import document, read
from sweeps.results.correctness_file import read_correct
from sweeps.results.ledger import Entry
from sweeps.results.rows.winners import winners
from tests.sweeps.conftest import entry

CONTRACT = {"method", "kind", "params", "trials", "val", "test", "test_ci95", "cost", "recipe",
            "run_id"}  # fmt: skip


def write(made, folder) -> None:
    """Both files of a comparison."""
    comparison_file.write(made, folder)
    comparison_file.write_table(made, folder)


def hits(text: str) -> np.ndarray:
    """`1101` as correctness."""
    return np.array([mark == "1" for mark in text])


CORRECT = {
    "pretrained": {"a": hits("1000000000"), "b": hits("10000")},
    "experts": {"a": hits("1111111111"), "b": hits("11111")},
    "ties": {"a": hits("1111111100"), "b": hits("11100")},
    "simple_average": {"a": hits("1111100001"), "b": hits("10100")},
}


def trial(key: str, method: str, acc: float | None, **changes) -> Entry:
    known = {
        "params": {"scale": 0.1},
        "trial_s": 2.0,
        "peak_bytes": 100,
        "started": "2026-03-01T09:00:00+00:00",
    }
    known |= (
        {"status": "failed", "error": "no memory"}
        if acc is None
        else {"metrics": {"acc/mean": acc, "acc/a": acc}}
    )
    return entry(key, method, **known | changes)


def comparison(**changes):
    rows = [
        Row("experts", "reference", val={"acc/mean": 0.99}),
        Row("ties", "static", {"density": 0.2, "scale": 0.9}, 2, {"acc/mean": 0.7, "acc/a": 0.8}),
        Row("fisher", "static", trials=1),
        Row("simple_average", "static", trials=1, val={"acc/mean": 0.5}, test={"nll/mean": 1.5}),
        Row("pretrained", "static", val={"acc/mean": 0.1}),
    ]
    known = {
        "select_on": "val",
        "created": "2026-03-01T09:40:00+00:00",
        "versions": {"torch": "2.13"},
    }
    failed = [vars(trial("k9", "fisher", None))]
    return compare(Header("tiny", "abcd", **(known | changes)), rows, CORRECT, failed)


def test_json_keeps_the_contract(tmp_path):
    write(comparison(), tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert {"sweep", "spec_hash", "select_on", "rows"} <= set(content)
    assert (content["sweep"], content["spec_hash"], content["select_on"]) == ("tiny", "abcd", "val")
    for row in content["rows"]:
        assert set(row) >= CONTRACT
        assert isinstance(row["trials"], int)
        assert isinstance(row["params"], dict)
        for group in ("val", "test", "cost"):
            assert all(isinstance(value, (float, int)) for value in row[group].values())
        assert all(low <= row["test"][name] <= high
                   for name, (low, high) in row["test_ci95"].items())  # fmt: skip
    ties = next(row for row in content["rows"] if row["method"] == "ties")
    assert set(ties["test"]) == set(ties["test_ci95"]) == {"acc/mean", "acc/a", "acc/b"}
    assert content["failed"] == [
        {"trial_key": "k9", "method": "fisher", "params": {"scale": 0.1}, "error": "no memory"}
    ]


def test_rows_go_from_pretrained_up_to_experts():
    rows = comparison().rows
    assert [row.method for row in rows] == [
        "pretrained", "fisher", "simple_average", "ties", "experts"
    ]  # fmt: skip
    assert [row.kind for row in rows] == ["reference", "static", "static", "static", "reference"]


def test_rows_without_test_go_by_the_select_split():
    rows = [Row("b", "static", val={"acc/mean": 0.4}), Row("a", "static", val={"acc/mean": 0.5})]
    made = compare(Header("s", "", "val"), rows, {})
    assert [row.method for row in made.rows] == ["b", "a"]
    assert made.pairs == ()
    assert made.best is made.rows[1]


def test_a_row_on_the_select_split_is_not_best_against_reported_ones():
    rows = [Row("ties", "static", val={"acc/mean": 0.1}), Row("x", "static", val={"acc/mean": 1.0})]
    assert compare(Header("s", "", "val"), rows, CORRECT).best.method == "ties"


def test_accuracies_and_intervals_by_hand():
    row = next(row for row in comparison().rows if row.method == "ties")
    assert row.test == {"acc/mean": pytest.approx(0.7), "acc/a": 0.8, "acc/b": 0.6}
    # Wilson, 8 of 10 and 3 of 5, z = 1.959964: published values.
    assert row.test_ci95["acc/a"] == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert row.test_ci95["acc/b"] == pytest.approx((0.2307, 0.8824), abs=1e-4)
    down = math.hypot(0.8 - 0.4902, 0.6 - 0.2307) / 2
    up = math.hypot(0.9433 - 0.8, 0.8824 - 0.6) / 2
    assert row.test_ci95["acc/mean"] == pytest.approx((0.7 - down, 0.7 + up), abs=1e-4)


def test_other_report_metrics_are_kept():
    row = next(row for row in comparison().rows if row.method == "simple_average")
    assert row.test["nll/mean"] == 1.5
    assert row.test["acc/a"] == 0.6


def test_exact_match_and_accuracy_are_shown_beside_each_other():
    def made(metric, **values):
        rows = [Row("ties", "static", test=values), Row("dare", "static", val={"acc/mean": 0.2})]
        return compare(Header("s", "", "val", metric=metric), rows, {})

    both = {"acc/mean": 0.7, "exact/mean": 0.4}
    for metric, title, value in (
        ("acc/mean", "exact match", 0.4),
        ("score/mean", "exact match", 0.4),
        ("exact/mean", "accuracy", 0.7),
    ):
        found = made(metric, **both)
        assert found.beside.title == title
        assert {row.method: found.value_beside(row) for row in found.rows}["ties"] == value
    assert made("acc/mean", **{"acc/mean": 0.7}).beside is None
    by_exact = compare(
        Header("s", "", "val", metric="exact/mean"),
        [Row("ties", "static", test={"acc/mean": 0.1, "exact/mean": 0.9})],
        CORRECT,
    )
    assert by_exact.rows[0].test["exact/a"] == 0.8
    assert (by_exact.rows[0].test["acc/mean"], by_exact.ranked_by.title) == (0.1, "exact match")


def test_mcnemar_and_holm_by_hand():
    pairs = {(pair.first, pair.second): pair for pair in comparison().pairs}
    assert len(pairs) == 6
    pair = pairs["simple_average", "ties"]
    # a: average has sample 9 alone, ties 5, 6, 7; b: ties has sample 1 alone.
    assert (pair.n, pair.b, pair.c) == (15, 1, 4)
    assert pair.p == pytest.approx(2 * (1 + 5) / 2**5)
    raw = sorted(pair.p for pair in pairs.values())
    assert raw[0] == pytest.approx(2 / 2**13)  # pretrained against experts: 0 of 13
    expected, highest = {}, 0.0
    for rank, p in enumerate(raw):
        highest = max(highest, min(1.0, (6 - rank) * p))
        expected[p] = max(expected.get(p, 0.0), highest)
    for pair in pairs.values():
        assert pair.p_holm == pytest.approx(expected[pair.p])


def test_other_numbers_of_samples_are_refused():
    broken = CORRECT | {"ties": {"a": hits("11"), "b": hits("11100")}}
    with pytest.raises(ValueError, match="pretrained, ties: a: 10 and 2 samples"):
        compare(Header("s", "", "val"), [Row("pretrained", ""), Row("ties", "")], broken)


def test_selecting_on_the_report_split_is_known():
    assert not comparison().optimistic
    assert comparison(select_on="test").optimistic


def test_files_read_back_and_are_the_same_bytes_each_time(tmp_path):
    made = comparison()
    write(made, tmp_path / "one")
    write(made, tmp_path / "two")
    assert read(tmp_path / "one") == made
    for name in ("comparison.json", "comparison.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "comparison.json",
        "comparison.parquet",
    ]


def test_json_has_null_for_what_is_not_finite(tmp_path):
    row = Row("x", "static", {"alpha": np.float64(0.5), "betas": (1, math.inf)},
              val={"acc/mean": 0.5, "nll/mean": math.nan})  # fmt: skip
    made = compare(Header("s", "", "val"), [row], {})
    write(made, tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())["rows"][0]
    assert content["params"] == {"alpha": 0.5, "betas": [1, None]}
    assert content["val"] == {"acc/mean": 0.5, "nll/mean": None}
    assert read(tmp_path) == made


def test_parquet_says_the_same_as_json(tmp_path):
    made = comparison()
    write(made, tmp_path)
    table = pq.read_table(tmp_path / "comparison.parquet")
    for line, row in zip(table.to_pylist(), document(made)["rows"], strict=True):
        assert json.loads(line["params"]) == row["params"]
        assert (line["method"], line["trials"]) == (row["method"], row["trials"])
        for name, (low, high) in row["test_ci95"].items():
            assert line[f"test/{name}"] == row["test"][name]
            assert [line[f"test_ci95/{name}/low"], line[f"test_ci95/{name}/high"]] == [low, high]
    rest = json.loads(table.schema.metadata[b"sweep"])
    assert rest == {name: value for name, value in document(made).items() if name != "rows"}


def test_a_failed_write_leaves_the_old_comparison(tmp_path, monkeypatch):
    write(comparison(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(table, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"comparison\.parquet: cannot be written: No space left"):
        write(comparison(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_no_comparison_is_named(tmp_path):
    with pytest.raises(InputError, match=r"comparison\.json: no comparison"):
        read(tmp_path)
    (tmp_path / "comparison.json").write_text('{"rows": [{}]}')
    with pytest.raises(InputError, match=r"comparison\.json: not a comparison"):
        read(tmp_path)


def test_winners_are_the_best_on_the_select_split():
    entries = [
        trial("k3", "ties", 0.7, params={"scale": 0.3}),
        trial("k1", "ties", 0.8, params={"scale": 0.1}),
        trial("k2", "ties", 0.8, params={"scale": 0.2}),
        trial("k4", "ties", None),
        trial("k6", "ties", 0.9, metrics={"acc/mean": math.nan}),
        trial("k5", "fisher", None),
    ]
    for given in (entries, entries[::-1]):
        fisher, ties = winners(given)
        assert (ties.trial_key, ties.params, ties.trials) == ("k1", {"scale": 0.1}, 5)
        assert (fisher.val, fisher.trials, fisher.trial_key) == ({}, 1, None)


def test_losses_are_minimised():
    entries = [trial(f"k{i}", "ties", 0.5, metrics={"nll/mean": loss})
               for i, loss in enumerate([0.9, 0.3, 0.5])]  # fmt: skip
    assert winners(entries, "nll/mean")[0].trial_key == "k1"


def test_rows_say_what_was_left_out_and_what_was_no_number():
    gone = {"candidate": "a", "outcome": "vanished", "note": "its file vanished; left out"}
    taken = {"candidate": "b", "outcome": "accepted", "note": ""}
    metrics = {"acc/mean": 0.5, "nll/mean": math.nan, "chosen/a/failed": 1.0}
    tried = [trial("k", "greedy_soup", 0.5, choices=[gone, taken], metrics=metrics)]
    (row,) = winners(tried, unit="text")
    assert row.notes[1] == "logits on select are NaN or infinite on some texts"
    (row,) = winners(tried, unit="image")
    assert row.notes == (
        "ingredient a: its file vanished; left out",
        "logits on select are NaN or infinite on some images",
        "a: 1 expert left out, their logits NaN or infinite",
    )
    (row,) = winners([trial("k", "ensemble", 0.5, metrics=metrics)], "nll/mean")
    assert (row.val, row.notes) == ({}, ("no trial has a finite nll/mean",))
    (row,) = winners([trial("k", "ensemble", 0.5, metrics={"acc/mean": 0.5, "nll/mean": 1.0})])
    assert row.notes == ()


def test_cost_counts_time_in_which_a_trial_ran():
    def at(second: int, key: str, **changes) -> Entry:
        return trial(key, "ties", 0.5, started=f"2026-03-01T09:00:{second:02}+00:00", **changes)

    # 0 to 2 and 1 to 3 overlap; 30 to 32 stands alone; the last queued from 40 and ran from 48.
    queued = at(40, "d", ended="2026-03-01T09:00:50+00:00")
    row = winners([at(0, "a"), at(1, "b", peak_bytes=300), at(30, "c"), queued])[0]
    assert row.cost == {"wall_s": 7.0, "trial_s": 2.0, "peak_bytes": 300, "gpu_s": None}
    bare = winners([trial("a", "ties", None, started="", trial_s=0.0, peak_bytes=0)])[0]
    assert bare.cost == {"wall_s": None, "trial_s": None, "peak_bytes": None, "gpu_s": None}
    paid = winners([at(0, "a", gpu_s=0.5), at(1, "b", gpu_s=1.25)])[0]
    assert paid.cost["gpu_s"] == 1.75  # of all trials


def store(path, rows) -> None:
    task, index, correct = zip(*rows, strict=True)
    table = pa.table({"task": pa.array(task).dictionary_encode(), "index": pa.array(index),
                      "correct": pa.array(correct)})  # fmt: skip
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_correctness_is_read_in_index_order(tmp_path):
    store(tmp_path / "x.arrow", [("b", 0, True), ("a", 1, False), ("a", 0, True)])
    store(tmp_path / "y.arrow", [("a", 0, False), ("a", 1, True), ("b", 0, False)])
    found = read_correct(tmp_path)
    assert found["x"]["a"].tolist() == [True, False]
    assert found["y"]["a"].tolist() == [False, True]
    assert found["x"]["b"].tolist() == [True]


def test_correctness_on_other_samples_is_refused(tmp_path):
    store(tmp_path / "x.arrow", [("a", 0, True), ("a", 1, True)])
    store(tmp_path / "y.arrow", [("a", 0, True), ("a", 2, True)])
    with pytest.raises(InputError, match=r"y\.arrow: a: other samples"):
        read_correct(tmp_path)


def shown(made, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(made, console)
    return console.export_text()


def test_terminal_table_fits_its_width():
    for width in (60, 80, 100, 200):
        assert max(map(len, shown(comparison(), width).splitlines())) <= width


def test_terminal_table_says_what_was_selected_on_what():
    text = shown(comparison(), 160)
    assert "▸ ties" in text
    assert "70.0 [" in text
    assert "density=0.2 scale=0.9" in text
    assert "selected on val by acc/mean, reported on test" in text
    assert "1 trial failed: fisher" in text
    assert "optimistic" not in text
    assert "selected on the report split: optimistic" in shown(comparison(select_on="test"), 160)


def test_terminal_table_of_a_running_sweep_has_no_test_column():
    rows = [Row("[bold]x", "static", val={"acc/mean": 0.5, "acc/a": 0.5})]
    text = shown(compare(Header("s", "", "val"), rows, {}), 120)
    assert "[bold]x" in text
    assert "CI" not in text
    assert "nothing is reported on test yet" in text
