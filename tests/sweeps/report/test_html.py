"""The HTML report: what it says, that it stands alone, and that no name can break it."""

import doctest
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fusion import METHODS, InputError
from sweeps.console import number_format
from sweeps.report import exports, terminal_table
from sweeps.report.charts import axes, hyperparameter_profiles, vega
from sweeps.report.charts import learning_curves as learning
from sweeps.report.charts.axes import Axis
from sweeps.report.charts.hyperparameter_profiles import curves, profile, profiles
from sweeps.report.html import html, write_html
from sweeps.report.significance_text import matrix, sentence, sentences, verdict
from sweeps.results.comparison import Comparison, Header, Pair, Row, compare
from sweeps.results.comparison_file import write
from sweeps.results.expert_matrix import ExpertMatrix
from sweeps.results.ledger import Entry, Ledger
from sweeps.results.rows.winners import winners
from tests.sweeps.conftest import entry

EVIL = "<script>alert('x')</script>"
DATE = "2026-03-01T09:40:00+00:00"
TASKS = ("cars", "svhn", "mnist")


class Page(HTMLParser):
    """Tags, attributes and text of a page; the tags must nest."""

    VOID = frozenset({"meta", "br", "wbr", "input"})

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
        if not self.open or self.open[-1] not in ("style", "script"):
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
        "selected: scale=0.3, 68.0 %", "against density, scale:",
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
    paper = report[report.index("@media print") :]
    assert ".charts { grid-template-columns: repeat(2," in paper  # not a chart a page
    drawings = re.findall(r"<svg[^>]*>", re.sub("<script>.*?</script>", "", report, flags=re.S))
    assert drawings
    assert all('role="img" aria-label=' in drawing for drawing in drawings)


def test_no_request_leaves_the_page(report):
    page = Page(report)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    loads = {"src", "srcset", "data", "action", "poster", "background"}
    assert not any(name in loads or name.startswith("on") for name, _ in page.attributes)
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not re.search(
        r"@import|url\(", "".join(re.findall("<style>(.*?)</style>", report, re.S))
    )
    (policy,) = [value for _, value in page.attributes if value and "default-src" in value]
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


def test_a_long_name_is_shortened_with_the_whole_in_its_tooltip():
    tasks = ("cars", "a_task_whose_name_goes_on_<b>_2024")
    entries = trials(tasks)
    page = html(finished(entries, tasks), entries)
    head = page[page.index('id="comparison"') :]
    head = head[: head.index("</thead>")]
    assert 'title="a_task_whose_name_goes_on_&lt;b&gt;_2024">a_<wbr>task_<wbr>whos…' in head
    assert 'title="cars"' not in head
    assert "<b>" not in head


def specs(page: str) -> list[dict]:
    """The specifications of the page's charts."""
    pattern = r'<div class="vega"></div><script type="application/json">(.*?)</script>'
    return [json.loads(text) for text in re.findall(pattern, page)]


def spec(page: str, description: str) -> dict:
    (found,) = [each for each in specs(page) if each["description"] == description]
    return found


def test_charts_are_specifications_with_their_data(report):
    curve = spec(report, "task_arithmetic: accuracy against scale")
    means = {v["value"]: v["accuracy"] for v in curve["data"]["values"] if v["of"] == "mean"}
    assert means == {0.1: 48.0, 0.2: 58.0, 0.3: 68.0, 0.4: 63.0, 0.5: 58.0}
    assert {v["of"] for v in curve["data"]["values"]} == {"mean", *TASKS}
    assert curve["layer"][1]["data"] == {"values": [{"value": 0.3}]}  # the selected trial
    plane = spec(report, "ties: accuracy over density and scale")
    assert plane["layer"][0]["mark"]["type"] == "rect"
    assert len(plane["data"]["values"]) == 9
    (chosen,) = [value for value in plane["data"]["values"] if value["selected"]]
    assert (chosen["x"], chosen["y"], chosen["text"]) == (0.2, 1.0, "72.0")
    shares = spec(report, "ties: importance of parameters")["data"]["values"]
    assert sum(each["share"] for each in shares) == pytest.approx(1, abs=1e-3)
    assert {each["parameter"]: each["share"] for each in shares}["density"] > 0.5


def test_three_parameters_are_parallel_coordinates():
    entries = [
        trial("weighted_average", {"weights": {"a": i / 9, "b": 1 - i / 9, "c": (i % 3) / 2}},
              accuracies(0.3 + i / 20))
        for i in range(10)
    ]  # fmt: skip
    page = html(finished(entries), entries)
    found = spec(page, "weighted_average: trials over weights.a, weights.b, weights.c")
    best = [v for v in found["data"]["values"] if v["trial"] == 9]
    assert [v["place"] for v in best] == [1.0, 0.0, 0.0, 1.0]
    assert [v["selected"] for v in best] == [True] * 4
    assert best[-1]["of"] == "accuracy, %: 28.0 to 73.0"
    assert best[0]["of"].startswith("a: ")  # without the mapping that all parameters are in
    assert found["encoding"]["color"]["condition"]["value"] == "chosen"  # seen on dark pages, too


def test_scales_of_tasks_are_parallel_coordinates_with_their_importance():
    """Beside trials of one scale: the form that most trials have is drawn."""
    entries = [
        trial("ties", {"scale": {"a": i / 9, "b": 7 * i % 10, "c": {"start": 0, "end": i % 3}}},
              accuracies(0.3 + i / 20))
        for i in range(10)
    ]  # fmt: skip
    entries += [trial("ties", {"scale": i / 9}, accuracies(0.2)) for i in range(4)]
    page = html(finished(entries), entries)
    found = spec(page, "ties: trials over scale.a, scale.b, scale.c.end")
    assert len({v["trial"] for v in found["data"]["values"]}) == 10
    shares = spec(page, "ties: importance of parameters")["data"]["values"]
    assert max(shares, key=lambda each: each["share"])["parameter"] == "scale.a"


def test_drawn_parameters_are_points_and_few_trials_have_no_importance():
    entries = [
        trial("ties", {"density": 0.1 + 0.013 * i, "scale": 1.0 + 0.11 * i * i}, accuracies(0.5))
        for i in range(5)
    ]
    page = html(finished(entries), entries)
    assert spec(page, "ties: accuracy over density and scale")["mark"]["type"] == "circle"
    assert not [each for each in specs(page) if "importance" in each["description"]]


def test_score_is_drawn_against_cost_with_the_front():
    known = {"ensemble": 3, "ties": 1}
    rows = tuple(
        replace(r, cost={"models": known[r.method], "input_s": 0.002 * known[r.method]})
        if r.method in known else r
        for r in FOUR
    )  # fmt: skip
    page = html(Comparison("s", "", "val", rows, tasks=("a",)), [])
    found = spec(page, "accuracy against cost")
    assert found["params"][0]["bind"]["options"] == ["models", "input_s"]
    points = {v["row"]: v for v in found["data"]["values"]}
    assert points["ensemble"] == {
        "row": "ensemble", "score": 65.0, "what": "method", "models": 3.0, "input_s": 6.0,
    }  # fmt: skip
    assert points["ties"]["what"] == "winner"
    assert points["experts"] | {"score": 0} == {
        "row": "experts", "score": 0, "what": "reference", "models": None, "input_s": None,
    }  # fmt: skip
    written = [layer for layer in found["layer"] if layer["mark"].get("type") == "text"]
    sides = {layer["mark"]["align"]: layer["transform"][-1]["filter"] for layer in written}
    assert sides.keys() == {"left", "right"}  # none is cut off at the right edge
    assert all("datum.above" in where for where in sides.values())  # none over another
    free = tuple(replace(row, cost={}) for row in FOUR)
    assert "accuracy against cost" not in html(Comparison("s", "", "val", free), [])


def test_the_experts_are_drawn_among_themselves():
    entries = trials()
    matrix = ExpertMatrix(
        "key",
        {"pretrained": {"cars": {"acc": 0.25}}, "cars": {"cars": {"acc": 0.75}, "svhn": {}}},
        {"cars": {"cars": 1.0, "svhn": 0.125}, "svhn": {"cars": 0.125, "svhn": None}},
    )
    page = html(finished(entries), entries, experts=matrix)
    assert spec(page, "every expert on every task")["data"]["values"] == [
        {"model": "pretrained", "task": "cars", "score": 25.0, "text": "25.0"},
        {"model": "cars", "task": "cars", "score": 75.0, "text": "75.0"},
    ]
    assert spec(page, "cosines of task vectors")["data"]["values"] == [
        {"first": "cars", "second": "svhn", "cosine": 0.125, "text": "0.12"},
        {"first": "svhn", "second": "cars", "cosine": 0.125, "text": "0.12"},
    ]
    assert "among themselves" not in html(finished(entries), entries)


def test_a_large_report_is_below_five_megabytes():
    tasks = tuple(f"task_{i}" for i in range(20))
    entries = [
        trial(f"method_{i}", {"scale": j / 10}, accuracies(0.5 + i / 1000 + j / 100, tasks))
        for i in range(40) for j in range(10)
    ]  # fmt: skip
    assert len(html(finished(entries, tasks), entries).encode()) < 5_000_000


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
    assert "<script>alert" not in text
    page = Page(text)
    assert page.tags.count("script") == text.count("<script")
    assert specs(text)
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
    assert text.count('<th scope="col">mnist</th>') == 2  # scores and costs
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


@pytest.mark.parametrize(
    "module",
    [axes, learning, terminal_table, number_format, vega, exports, hyperparameter_profiles],
)
def test_examples_hold(module):
    assert doctest.testmod(module).failed == 0


def test_ticks_are_round_and_on_the_axis():
    assert Axis.around([0.48, 0.91]).ticks() == [0.5, 0.6, 0.7, 0.8, 0.9]
    for low, high in [(0.3, 0.3), (0, 0), (1e-9, 2e-9), (5, 5e6)]:
        axis = Axis.around([low, high])
        assert all(0 <= axis.at(tick) <= 1 for tick in axis.ticks())
        assert 0 < axis.at(low) < 1


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


def test_learning_is_drawn_with_the_winner_above_and_stopped_trials_named():
    text = learned_report([course(1e-3, 20, 0.8), course(2e-3, 5, 0.7), course(3e-3, 10, 0.75)])
    assert "<h2>Learning</h2>" in text
    told = "selected: learning_rate=0.001, 20 steps; loss 5.5 at first, 4 at last"
    page = Page(text)
    assert told in page.text
    assert "2 were stopped early" in page.text
    assert "A trial that was stopped early counts with the accuracy" in page.text
    values = spec(text, "adamerging: loss against step")["data"]["values"]
    assert [(v["step"], v["loss"]) for v in values if v["selected"]] == [
        (5, 5.5), (10, 5.0), (15, 4.5), (20, 4.0),
    ]  # fmt: skip
    assert {v["trial"] for v in values if v["selected"]} == {2}  # the winner is drawn last
    assert "learning_rate=0.002 steps=20: 5 of 20 steps, stopped early" in {v["of"] for v in values}
    last = [v for v in spec(text, "adamerging: coefficients against step")["data"]["values"]
            if v["step"] == 20]  # fmt: skip
    assert {v["of"]: v["coefficient"] for v in last} == {"max": 0.7, "mean": 0.3, "min": 0.1}


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
    assert "<script>alert" not in text
    values = spec(text, "adamerging: loss against step")["data"]["values"]
    assert len({v["trial"] for v in values}) == 12
    assert spec(text, "of_another_version: loss against step")["data"]["values"]


def test_long_curves_are_thinned_to_stretches():
    curve = [{"step": 5 * i, "loss": float(i % 2), "coding/min": -float(i), "coding/mean": 0.0,
              "coding/max": float(i)} for i in range(1, 1001)]  # fmt: skip
    many = [course(1e-3 * i, 5000, 0.5, curve=curve) for i in range(1, 41)]
    (drawn,) = learning.figures(many, {"adamerging": many[3].trial_key})
    assert len(vega.learning(drawn["curves"])["data"]["values"]) == 40 * vega.POINTS
    coded = vega.coding(drawn["coding"])["data"]["values"]
    assert len(coded) == 3 * vega.POINTS
    assert {v["of"]: v["coefficient"] for v in coded if v["step"] == 5000} == {
        "max": 1000.0, "mean": 0.0, "min": -1000.0,
    }  # fmt: skip
