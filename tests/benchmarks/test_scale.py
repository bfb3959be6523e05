"""What the scale benchmark counts, and what the capacity tables are made of, by hand."""

import pytest

from benchmarks.actors.capacity import B32, L14, SEVEN, fewest, tables
from benchmarks.actors.scale import Size
from benchmarks.actors.scale_driver import methods
from sweeps.spec.candidates import planned
from sweeps.spec.reference_methods import completed
from sweeps.spec.sweep import validate


@pytest.mark.parametrize("trials", [10, 100, 1000])
def test_a_synthetic_sweep_has_the_trials_it_says(trials):
    spec = validate(
        {
            "name": "s",
            "pool": {"base": "b", "experts": {"tones": "e"}},
            "methods": methods(trials),
        },
        "s.yaml",
    )
    references = 2
    assert sum(planned(completed(spec)).values()) + references == trials


def test_what_a_trial_adds_leaves_the_waiting_out():
    new = {"trials": 100, "span_s": 7.0}
    size = Size(new, {}, {}, rows=0, slots=10, noop=0.2)
    assert size.added() == pytest.approx((7.0 - 100 * 0.2 / 10) / 100)


def test_parameters_are_those_of_the_published_models():
    millions = [sum(model.segments) / 4e6 for model in (B32, L14, SEVEN)]
    assert millions == pytest.approx([87.85, 303.97, 6738], rel=1e-3)


def test_traffic_of_a_step_counts_every_cut_in_both_directions():
    # Three cuts, forth and back, 8 tasks × 16 images × 257 tokens × 1024 numbers of 2 bytes.
    assert L14.traffic(4, 8 * 16, 2) == 3 * 2 * 128 * 257 * 1024 * 2
    assert L14.traffic(1, 8 * 16, 2) == 0


def test_work_of_a_forward_pass():
    weights, tokens = 24 * (4 * 1024**2 + 2 * 1024 * 4096), 257
    products, attention = 2 * weights * tokens, 4 * tokens**2 * 1024 * 24
    assert L14.work(1) == 3 * (products + attention)


def test_more_experts_need_more_shards():
    assert fewest(L14.load(8, 4, 16)) == 1
    assert fewest(L14.load(64, 4, 16)) == 2


def test_the_tables_are_whole():
    widths = [line.count("|") for line in tables() if line]
    assert set(widths) == {5, 9, 10}
