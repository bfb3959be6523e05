"""The HTML report: what it says, that it stands alone, and that no name can break it."""

import doctest
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fusion import METHODS, InputError
from sweeps.console import number_format
from sweeps.report import terminal_table
from sweeps.report.charts import axes
from sweeps.report.charts import learning_curves as learning
from sweeps.report.charts.axes import Axis, spread, tried_ticks
from sweeps.report.charts.hyperparameter_profiles import curves, profile, profiles
from sweeps.report.html import html, write_html
from sweeps.report.significance_text import matrix, sentence, sentences, verdict
from sweeps.results.comparison import Comparison, Header, Pair, Row, compare
from sweeps.results.comparison_file import write
from sweeps.results.ledger import Entry, Ledger
from sweeps.results.winners import winners
from tests.sweeps.conftest import entry

EVIL = "<script>alert('x')</script>"
DATE = "2026-03-01T09:40:00+00:00"
TASKS = ("cars", "svhn", "mnist")


class Page(HTMLParser):
    """Tags, attributes and text of a page; the tags must nest."""

    VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def trial(method: str, params: dict, accuracies: dict[str, float] | None, **changes) -> Entry:
    known = {
        "params": params,
        "trial_s": 3.0,
        "peak_bytes": 2_000_000_000,
        "started": "2026-03-01T09:00:00+00:00",
    }
    if accuracies:
        mean = sum(accuracies.values()) / len(accuracies)
        found = {f"acc/{task}": value for task, value in accuracies.items()}
        known["metrics"] = {**found, "acc/mean": mean, "nll/mean": 0.7}
    else:
        error = "Traceback (most recent call last):\n  line\nOSError: no disk"
        known |= {"status": "failed", "error": error}
    return entry(changes.pop("trial_key", f"{method}-{params}"), method, **known | changes)


def accuracies(value: float, tasks=TASKS) -> dict[str, float]:
    return {task: value - 0.02 * i for i, task in enumerate(tasks)}


def trials(tasks=TASKS) -> list[Entry]:
    """λ on a grid, TIES over a plane, one method without parameters, one that fails."""
    peak = [0.5, 0.6, 0.7, 0.65, 0.6]
    made = [trial("task_arithmetic", {"scale": round(0.1 * (i + 1), 1)}, accuracies(value, tasks))
            for i, value in enumerate(peak)]  # fmt: skip
    for density in (0.1, 0.2, 0.3):
        for scale in (0.5, 1.0, 1.5):
            value = 0.74 - abs(density - 0.2) - 0.1 * abs(scale - 1)
            made.append(trial("ties", {"density": density, "scale": scale},
                              accuracies(value, tasks)))  # fmt: skip
    made.append(trial("simple_average", {}, accuracies(0.6, tasks)))
    made.append(trial("fisher", {"floor": 1e-6}, None))
    return made


def samples(rate: float, tasks, n: int, seed: int) -> dict[str, np.ndarray]:
    """Correctness that shares its difficulties with other rows."""
    hard = np.linspace(0, 1, n)
    noise = np.random.default_rng(seed).normal(0, 0.05, n)
    return {task: hard + noise < rate - 0.02 * i for i, task in enumerate(tasks)}


def finished(entries: list[Entry], tasks=TASKS, n: int = 200, **changes) -> Comparison:
    rows = [
        Row("pretrained", "reference", val={"acc/mean": 0.4}),
        Row("experts", "reference", val={"acc/mean": 0.9}),
        *winners(entries),
    ]
    rates = {"pretrained": 0.4, "experts": 0.9} | {
        row.method: row.val["acc/mean"] or 0.0 for row in rows[2:] if row.val
    }
    correct = {name: samples(rate, tasks, n, i) for i, (name, rate) in enumerate(rates.items())}
    known = {"select_on": "val", "created": DATE, "tasks": tasks,
             "versions": {"torch": "2.13"}, "command": "sweeps run tiny.yaml"}  # fmt: skip
    failed = [vars(each) for each in entries if each.status == "failed"]
    return compare(Header("tiny", "abcd", **(known | changes)), rows, correct, failed)


@pytest.fixture(scope="module")
def report() -> str:
    entries = trials()
    return html(finished(entries), entries)


def test_page_says_what_was_done(report):
    text = Page(report).text
    for words in (
        "tiny", "selected on val by acc/mean, reported on test", "16 trials, 1 failed",
        "2026-03-01 09:40 UTC", "torch 2.13", "sweeps run tiny.yaml",
        "ties (density=0.2 scale=1.0) is best", "of the way from the pretrained model",
        "OSError: no disk", "2.0 GB",
        "selected: scale=0.3, 68.0 %", "scale (up) against density (across)",
        "Yadav et al. 2023, arXiv:2306.01708", "Wilson's score interval",
    ):  # fmt: skip
        assert words in text, words
    for task in TASKS:
        assert task in text
    assert ">ties</th><td>9</td><td>3.0 s</td><td>" in report


def test_models_that_write_have_a_column_for_what_they_write():
    made = finished(trials())
    rows = tuple(replace(row, test={**row.test, "exact/mean": 0.1234}) for row in made.rows)
    page = html(replace(made, rows=rows), trials())
    assert '<th scope="col">exact match<small>mean</small></th>' in page
    assert page.count("<td>12.3</td>") == len(rows)
    assert "exact match" not in html(made, trials())


def test_page_is_ready_for_any_reader(report):
    page = Page(report)
    assert ("lang", "en") in page.attributes
    assert ("content", "width=device-width, initial-scale=1") in page.attributes
    assert "<title>tiny: comparison of fusion methods</title>" in report
    assert "prefers-color-scheme: dark" in report
    assert "@media print" in report
    drawings = re.findall(r"<svg[^>]*>", report)
    assert drawings
    assert all('role="img" aria-label=' in drawing for drawing in drawings)


def test_page_loads_nothing_and_runs_nothing(report):
    page = Page(report)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not any(name == "src" or name.startswith("on") for name, _ in page.attributes)
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not re.search(r"https?://|//cdn|@import|url\(", report)
    assert "default-src 'none'" in report


def test_links_within_the_page_have_targets(report):
    page = Page(report)
    targets = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= targets


def test_names_cannot_break_the_page():
    entries = [trial(EVIL, {EVIL: value, "note": EVIL}, {EVIL: 0.5 + value, 'b"&': 0.5})
               for value in (0.1, 0.2, 0.3)]  # fmt: skip
    entries.append(trial(EVIL, {EVIL: [EVIL] * 9}, None, error=f"{EVIL}\n{EVIL}"))
    header = Header(EVIL, EVIL, "val", EVIL, created=EVIL, versions={EVIL: EVIL}, command=EVIL)
    made = compare(
        header, winners(entries), {EVIL: {EVIL: np.array([True, False])}},
        [vars(each) for each in entries[3:]],
    )  # fmt: skip
    made = replace(made, pairs=(Pair(EVIL, EVIL, 2, 1, 0, 1.0, 1.0),))
    text = html(made, entries)
    assert "<script" not in text
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in page.text
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_same_bytes_each_time(tmp_path):
    entries = trials()
    for name in ("one", "two"):
        write_html(finished(entries), tmp_path / name, reversed(entries))
        entries = entries[::-1]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sweep_folder_is_enough(tmp_path):
    entries = trials()
    for each in entries:
        Ledger(tmp_path / "ledger").add(each)
    write(finished(entries), tmp_path)
    write_html(tmp_path, tmp_path / "report.html")
    write_html(finished(entries), tmp_path / "other.html", entries)
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_running_sweep_shows_its_trials(tmp_path):
    for each in trials():
        Ledger(tmp_path / "running" / "ledger").add(each)
    write_html(tmp_path / "running", tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Not finished: accuracies below are those of the select split" in text
    assert "ties (density=0.2 scale=1.0) is best so far" in text
    assert "Nothing to compare yet" in text


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"comparison\.json: no comparison"):
        write_html(tmp_path, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_one_trial_of_one_task():
    entries = [trial("task_arithmetic", {"scale": 0.3}, {"mnist": 0.8})]
    made = compare(Header("s", "", "val", created=DATE), winners(entries), {})
    text = Page(html(made, entries)).text
    assert "task_arithmetic (scale=0.3) is best so far: 80.0 % on val." in text
    assert "1 trial; 1 row, 1 task" in text


def test_a_single_task_has_one_column():
    entries = trials(("mnist",))
    text = html(finished(entries, ("mnist",)), entries)
    assert text.count('<th scope="col">mnist</th>') == 1
    assert '<th scope="col">mean</th>' not in text


def test_nothing_succeeded():
    entries = [trial("fisher", {"floor": 1e-6}, None)]
    failed = [vars(each) for each in entries]
    made = compare(Header("s", "", "val"), winners(entries), {}, failed)
    text = Page(html(made, entries)).text
    assert "No method has a successful trial yet." in text
    assert "no successful trial, see why" in text
    assert "OSError: no disk" in text


def test_nothing_at_all():
    assert "No method has" in Page(html(compare(Header("s", "", "val"), [], {}), [])).text


def test_twenty_tasks_and_long_parameters():
    tasks = tuple(f"dataset_with_a_long_name_{i:02}" for i in range(20))
    entries = trials(tasks)
    entries.append(trial("adamerging", {"coding": [i / 96 for i in range(96)]},
                         accuracies(0.8, tasks)))  # fmt: skip
    page = Page(html(finished(entries, tasks), entries))
    assert page.tags.count("wbr") > 20
    assert "0.989583]" in page.text
    assert "dataset_with_a_long_name_19" in page.text


def test_selecting_on_the_report_split_is_said():
    entries = trials()
    assert "Optimistic:" in html(finished(entries, select_on="test"), entries)
    assert "Optimistic:" not in html(finished(entries), entries)


def test_cells_below_pretrained_are_marked(report):
    entries = [trial("ties", {}, accuracies(0.2))]
    assert "▾ 15.7" in Page(html(finished(entries), entries)).text
    assert "▾" not in Page(report).text


def pair(b: int, c: int, p: float, p_holm: float) -> Pair:
    return Pair("ties", "wise_ft", 100, b, c, p, p_holm)


def test_differences_in_words():
    assert sentence(pair(8, 2, 0.03, 0.4)) == (
        "ties vs wise_ft: +6.0 pp, p = 0.030 → not significant after Holm (p = 0.40)"
    )
    assert sentence(pair(2, 8, 1e-5, 1e-4)) == (
        "ties vs wise_ft: −6.0 pp, p < 0.001 → significant after Holm (p < 0.001)"
    )
    assert sentence(pair(3, 3, 1.0, 1.0)) == "ties vs wise_ft: 0.0 pp, p = 1 → not significant"


def test_matrix_tells_rows_less_columns():
    rows = (
        Row("a", "static", test={"acc/mean": 0.5}),
        Row("b", "static", test={"acc/mean": 0.6}),
        Row("c", "static", test={"acc/mean": 0.7}),
    )
    pairs = (
        Pair("a", "b", 100, 10, 20, 0.1, 0.2),
        Pair("a", "c", 100, 10, 40, 0.001, 0.003),
        Pair("b", "c", 100, 30, 10, 0.01, 0.02),
    )
    made = Comparison("s", "", "val", rows, pairs=pairs)
    found = matrix(made)
    assert found["columns"] == ["b", "a"]
    cells = {name: [cell and (cell["difference"], cell["style"]) for cell in cells]
             for name, cells in found["lines"]}  # fmt: skip
    assert cells == {"c": [("−20.0", "worse"), ("+30.0", "better")], "b": [None, ("+10.0", "tie")]}
    # c is above b in the mean over tasks and below it in the pooled samples.
    assert [line["contradicts"] for line in sentences(made)] == [True, False]
    assert [line["significant"] for line in sentences(made)] == [True, True]


def plain(sentences: list[str]) -> list[str]:
    return [text.replace("\u00a0", " ") for text in sentences]


FOUR = (
    Row("pretrained", "reference", test={"acc/mean": 0.4}),
    Row("ties", "static", test={"acc/mean": 0.6}, test_ci95={"acc/mean": (0.55, 0.65)}),
    Row("ensemble", "logits", test={"acc/mean": 0.65}, cost={"models": 3, "passes": 3}),
    Row("experts", "reference", test={"acc/mean": 0.9}),
)
WON = [
    "ties is best: 60.0 % [55.0, 65.0] on test, averaged over 2 tasks.",
    "That is 40 % of the way from the pretrained model (40.0 %) to the experts, each on its "
    "own task (90.0 %).",
]
PRICE = "runs every expert on each input: 3 models in memory, 3 forward passes an input"


def test_verdict_names_what_the_data_cannot_tell_apart():
    pairs = (Pair("ties", "ensemble", 100, 10, 15, 0.4, 0.4),)
    said = plain(verdict(Comparison("s", "", "val", FOUR, pairs=pairs, tasks=("a", "b"))))
    assert said == [
        *WON,
        "The samples do not tell it from ensemble (paired tests below).",
        f"ensemble has 65.0 %, but {PRICE}; ties is the best single model.",
    ]


def test_what_was_not_asked_for_is_a_reference_and_never_wins():
    rows = tuple(replace(row, asked=row.method == "ties") for row in FOUR)
    made = Comparison("s", "", "val", rows, tasks=("a", "b"))
    assert made.best.method == made.top.method == "ties"
    assert [row.method for row in made.ranked] == ["ties", "experts", "ensemble", "pretrained"]
    assert plain(verdict(made)) == [*WON, f"The reference ensemble has 65.0 %; it {PRICE}."]
    page = html(made, [])
    assert page.index('class="best-row"') < page.index('<tbody class="apart">')
    assert "ensemble: not in the sweep file" in Page(page).text


def test_several_models_win_only_where_no_method_is_one_model():
    rows = (FOUR[0], replace(FOUR[1], test={}, val={}), *FOUR[2:])
    made = Comparison("s", "", "val", rows, tasks=("a",))
    assert made.best.method == "ensemble"
    assert plain(verdict(made))[:2] == ["ensemble is best: 65.0 % on test.", f"It {PRICE}."]


def test_verdict_says_what_merging_made_worse():
    def row(method: str, kind: str, a: float, b: float) -> Row:
        return Row(method, kind, test={"acc/mean": (a + b) / 2, "acc/a": a, "acc/b": b})

    base = row("pretrained", "reference", 0.5, 0.5)
    good, mixed, bad = (
        row("ties", "x", 0.6, 0.7), row("magmax", "x", 0.9, 0.45), row("dare", "x", 0.1, 0.2)
    )  # fmt: skip

    def said(*rows: Row) -> list[str]:
        sentences = plain(verdict(Comparison("s", "", "val", (base, *rows), tasks=("a", "b"))))
        return [text for text in sentences if text.startswith("Merging hurts")]

    assert said(good) == []
    assert said(mixed) == [
        "Merging hurts: magmax is below the pretrained model on 1 of 2 tasks"
        " (b, 45.0 against 50.0 %)."
    ]
    assert said(good, bad) == [
        "Merging hurts: below the pretrained model (50.0 %) in the mean: dare."
    ]
    assert said(bad) == [
        "Merging hurts: no merge reaches the pretrained model (50.0 %), and dare is below it on"
        " 2 of 2 tasks (a, 10.0 against 50.0 %; b, 20.0 against 50.0 %)."
    ]


def test_what_rounds_to_the_level_is_not_shown_as_it():
    below, at = pair(8, 2, 0.01, 0.04996), pair(8, 2, 0.01, 0.05)
    assert sentence(below).endswith("→ significant after Holm (p = 0.0499)")
    assert sentence(at).endswith("→ not significant after Holm (p = 0.050)")


@pytest.mark.parametrize(
    ("top", "what"),
    [
        ("tall_mask", "is one model a task"),
        ("wemoe", "is one model a sample"),
        ("dawe", "is one model a sample"),
        ("linear_probe", "is fitted to embeddings, task by task"),
        ("greedy_ensemble", "runs every expert on each input"),
        ("concrete_adamerging", None),
    ],
)
def test_verdict_names_what_has_more_than_the_best_single_model(top: str, what: str | None):
    names = ["ties", "emr", "dawin", "clip_adapter", top]
    rows = [Row(name, METHODS[name].kind, test={"acc/mean": 0.5 + at / 10})
            for at, name in enumerate(names)]  # fmt: skip
    said = [text for text in verdict(Comparison("s", "", "val", tuple(rows), tasks=("a",)))
            if "single model" in text]  # fmt: skip
    wanted = [f"{top} has 90.0 %, but {what}; ties is the best single model."] if what else []
    assert plain(said) == wanted


def test_profiles_take_numbers_that_were_swept():
    entries = trials()
    found = {each.method: each for each in profiles(entries, {}, TASKS)}
    assert {name: each.names for name, each in found.items()} == {
        "task_arithmetic": ("scale",),
        "ties": ("density", "scale"),
    }
    line = curves(found["task_arithmetic"], "mean")[""]
    assert [at for at, _ in line] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [value for _, value in line] == pytest.approx([0.48, 0.58, 0.68, 0.63, 0.58])


def test_profiles_part_other_parameters_and_average_seeds():
    def gated(rate: float, grouping: str, value: float, seed: int = 0) -> Entry:
        params = {"learning_rate": rate, "grouping": grouping, "steps": 10}
        return trial("dawe", params, {"a": value}, trial_key=f"{rate}{grouping}{seed}")

    found = profile(
        "dawe",
        [gated(1e-5, "task", 0.5), gated(1e-5, "task", 0.7, 1), gated(1e-4, "task", 0.8),
         gated(1e-3, "layer", 0.6)],
        "0.0001task0", ("a",),
    )  # fmt: skip
    assert found.logs == (True,)
    assert curves(found, "a") == {
        "grouping=task": [(1e-5, pytest.approx(0.6)), (1e-4, 0.8)],
        "grouping=layer": [(1e-3, 0.6)],
    }
    assert found.chosen.at == (1e-4,)


def test_two_values_make_no_curve():
    entries = [trial("ties", {"scale": scale, "flag": scale > 1}, {"a": 0.5}) for scale in (1, 2)]
    assert profiles(entries, {}, ("a",)) == []


@pytest.mark.parametrize("module", [axes, learning, terminal_table, number_format])
def test_examples_hold(module):
    assert doctest.testmod(module).failed == 0


def test_ticks_are_round_and_on_the_axis():
    assert Axis.around([0.48, 0.91]).ticks() == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert Axis.around([1e-6, 1e-3], log=True).ticks(4) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3])
    assert tried_ticks(Axis.around([0.1, 0.2, 0.5]), [0.1, 0.2, 0.5]) == [0.1, 0.2, 0.5]
    for low, high in [(0.3, 0.3), (0, 0), (1e-9, 2e-9), (5, 5e6)]:
        axis = Axis.around([low, high])
        assert all(0 <= axis.at(tick) <= 1 for tick in axis.ticks())
        assert 0 < axis.at(low) < 1


def test_labels_are_spread_but_stay_inside():
    places = spread([99.0, 98.0, 3.0, 97.0], gap=10, high=100)
    assert places == pytest.approx([100.0, 90.0, 3.0, 80.0])
    assert all(math.isfinite(place) for place in spread([5.0] * 40, gap=10, high=100))


def course(rate: float, steps: int, value: float, **changes) -> Entry:
    """A trial of AdaMerging that was to take 20 steps, with a checkpoint every five."""
    curve = [
        {"step": at, "loss": 6 - 0.1 * at, "loss/cars": 6 - 0.1 * at, "coding/min": 0.3 - 0.01 * at,
         "coding/mean": 0.3, "coding/max": 0.3 + 0.02 * at}
        for at in range(5, steps + 1, 5)
    ]  # fmt: skip
    params = {"learning_rate": rate, "steps": 20}
    made = trial("adamerging", params, accuracies(value), kind="adaptive", steps=steps, curve=curve)
    return replace(made, **changes)


def learned_report(entries: list[Entry]) -> str:
    made = finished([*trials(), *entries])
    rows = [replace(row, notes=("adapted to <unlabelled> val images",))
            if row.method == "adamerging" else row for row in made.rows]  # fmt: skip
    return html(replace(made, rows=tuple(rows)), [*trials(), *entries])


def test_learning_is_drawn_with_the_winner_above_and_stopped_trials_crossed():
    text = learned_report([course(1e-3, 20, 0.8), course(2e-3, 5, 0.7), course(3e-3, 10, 0.75)])
    assert "<h2>Learning</h2>" in text
    told = "selected: learning_rate=0.001, 20 steps; loss 5.5 at first, 4 at last"
    assert f'aria-label="adamerging: loss against step; 3 trials, 2 stopped early; {told}"' in text
    assert (
        'aria-label="adamerging: coefficients of the selected trial against step;'
        ' last: max 0.7, mean 0.3, min 0.1"' in text
    )
    page = Page(text)
    assert told in page.text
    assert "loss against step, by learning_rate" in page.text
    assert "×: a trial that was stopped early" in page.text
    assert text.count('class="cross task"') == 2
    assert "learning_rate=0.002 steps=20: 5 of 20 steps, loss 5.5, stopped early" in page.text
    assert "A trial that was stopped early counts with the accuracy" in page.text
    (chart,) = re.findall(r"<svg[^>]*loss against step.*?</svg>", text)
    lines = re.findall(r'<line class="(mean|task)"', chart)
    assert lines == ["task"] + ["mean"] * 3  # one point makes no line; the winner comes last
    ends = re.findall(r'<text class="beside (\w+)"[^>]*>([^<]*)', chart)
    assert sorted(ends) == [("mean", "0.001"), ("task", "0.002"), ("task", "0.003")]


def test_notes_stand_beneath_the_method_and_steps_among_the_trials(report):
    text = learned_report([course(1e-3, 20, 0.8), course(2e-3, 5, 0.7)])
    note = '<small class="note">adapted to &lt;unlabelled&gt; val images</small>'
    assert text.count(note) == 2  # beside its interval, and in the table
    assert '<th scope="row" abbr="adamerging">' in text
    assert '<th scope="col">steps</th>' in text
    assert "<td>20</td>" in text
    assert "<td>5 of 20</td>" in text
    for absent in ("<h2>Learning</h2>", "steps</th>", '<small class="note">', "stopped early"):
        assert absent not in report


def test_curves_of_odd_trials_do_not_break_the_report():
    nan, params = math.nan, {"learning_rate": EVIL}
    odd = [
        course(1e-3, 5, 0.8),
        course(1e-3, 20, 0.5, trial_key="nan", curve=[{"step": 5, "loss": nan}]),
        course(1e-3, 20, 0.5, trial_key="evil", params=params),
        course(1e-3, 20, 0.5, trial_key="x", method="of_another_version"),
        *(course(1e-3 * i, 20, 0.4) for i in range(2, 12)),
    ]
    text = learned_report(odd)
    assert "<script" not in text
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text))
    assert "adamerging: loss against step; 12 trials, 1 stopped early" in text
    (chart,) = re.findall(r"<svg[^>]*adamerging: loss against step.*?</svg>", text)
    assert "beside" not in chart
    assert "of_another_version: loss against step; 1 trial" in text


def test_long_curves_are_thinned_to_stretches():
    curve = [{"step": 5 * i, "loss": float(i % 2), "coding/min": -float(i), "coding/mean": 0.0,
              "coding/max": float(i)} for i in range(1, 1001)]  # fmt: skip
    many = [course(1e-3 * i, 5000, 0.5, curve=curve) for i in range(1, 41)]
    drawn = learning.figures(many, {"adamerging": many[3].trial_key})
    assert len(drawn) == 1
    assert 40 * 60 < drawn[0]["loss"].count("<line") < learning.SEGMENTS + 50
    assert drawn[0]["coding"].count("<line") < 3 * 150 + 30
    assert "last: max 1e+03, mean 0, min -1e+03" in drawn[0]["coding"]
