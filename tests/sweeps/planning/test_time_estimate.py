"""The estimate of a sweep's time, by hand; what a run leaves for the next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.cluster import ray_connection
from sweeps.planning.prepare import prepare
from sweeps.planning.print_plan import forwarded
from sweeps.planning.rates import SAME, Rates, Span
from sweeps.planning.time_estimate import (
    Measured,
    estimate,
    keep_rates,
    model_key,
    multiplications,
)
from sweeps.spec.sweep import validate
from tests.sweeps.conftest import entry
from tests.sweeps.planning.test_print_plan import planned
from tests.tiny_pool import TinyPool


@pytest.fixture
def prepared(tiny_pool: TinyPool, tmp_path: Path):
    methods = {"ties": {"density": {"grid": [0.1, 0.2, 0.3]}}, "adamerging": {"steps": 4}}
    spec = validate(tiny_pool.spec(methods=methods), "s.yaml")
    found = prepare(spec, tmp_path, ray_connection.this_machine())
    return replace(found, plan=replace(found.plan, replicas=2))


def test_nothing_is_known_before_the_first_run(prepared, tmp_path):
    span = estimate(prepared, Rates(tmp_path, "cpu"))
    assert span.guessed
    assert 5 < span.low < 60 < span.high


def test_by_hand(prepared, tmp_path):
    rates, model, work = Rates(tmp_path, "cpu"), model_key(prepared), multiplications(prepared)
    rows = forwarded(prepared)
    for method in rows:
        rates.keep("evaluate", 0.25 / work, 1, f"{model}:{method}")  # a quarter of a second a row
    rates.keep("learn", 0.5 / work, 1, f"{model}:adamerging")
    rates.keep("start", 7.0, 1, model)
    rates.keep("trial", 3.0, 1)
    rates.keep("prepare", 0.001, 1, prepared.inputs.about)
    rates.keep("finish", 2.0, 1, model)
    passed = sum(select + report for _, select, report in rows.values())
    learned = 4 * 16 * 3  # steps, images of a task, tasks
    trials = sum(count for count, _, _ in rows.values())
    known = 7 + (0.25 * passed + 0.5 * learned) / 2 + 3 * trials + 2 * len(rows)
    span = estimate(prepared, rates)
    assert span.low == pytest.approx(SAME[0] * known)
    assert span.high == pytest.approx(SAME[1] * (known + 0.001 * prepared.images))
    rest = estimate(prepared, rates, done=trials)  # of trials nothing is left
    select = sum(count for _, count, _ in rows.values())
    left = known - (0.25 * select + 0.5 * learned) / 2 - 3 * trials
    assert rest.low == pytest.approx(SAME[0] * left)


def test_what_a_run_leaves(prepared, tmp_path):
    rates, model, work = Rates(tmp_path, "cpu"), model_key(prepared), multiplications(prepared)
    rows = forwarded(prepared)
    trials = [entry(str(i), "ties", busy_s=4.0) for i in range(3)]
    keep_rates(prepared, rates, trials, Measured(start=9.0, trials=12.0, finish=60.0))
    ties = rates.span("evaluate", f"{model}:ties")
    a_row = 12 / (rows["ties"][1] * work)
    assert (ties.low, ties.high) == pytest.approx((SAME[0] * a_row, SAME[1] * a_row))
    assert rates.span("start", model) == Span(9 * SAME[0], 9 * SAME[1])
    assert rates.span("trial").low == pytest.approx(SAME[0] * (12 - 12 / 2) / 3)
    assert not estimate(prepared, rates).high < 60  # the end alone took a minute
    assert rates.span("learn").guessed  # nothing was learned in this run


def test_the_plan_says_it(tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    text = planned(tiny_pool.spec(), tmp_path)
    (line,) = (line for line in text.splitlines() if line.startswith("time "))
    assert "nothing like it was measured" in line
