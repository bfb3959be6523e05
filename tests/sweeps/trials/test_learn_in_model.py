"""A trial whose parameters live in shards, without Ray: checkpoints, resumption, rungs, files."""

import pytest

from actors.artifacts.recipe import Recipe
from fusion.errors import InputError
from sweeps.planning.learning_needs import needs_of
from sweeps.planning.print_plan import learned_images
from sweeps.report.charts.learning_curves import asked_steps
from sweeps.results.ledger import Entry
from sweeps.results.rows.disclosures import notes_of
from sweeps.spec.sweep import SplitSpec, validate
from tests.sweeps.trials.learning import NAMES, PARAMS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rungs_are_reported_for_methods_with_a_scheduler_only(trials, tmp_path):
    reports, learned = trials.run("ewemoe", tmp_path / "a")
    assert [(rung, step) for rung, _, step, _ in reports] == [(1, 1), (3, 3), (9, 9)]
    curve = reports[-1][3]
    assert [point["step"] for point in curve] == [1, 3, 6, 9]
    assert curve[0]["loss"] == pytest.approx(sum(curve[0][f"loss/{name}"] for name in NAMES))
    other, _ = trials.run("concrete_adamerging", tmp_path / "b")
    assert [(rung, step) for rung, _, step, _ in other] == [(9, 9)]
    recipe = Recipe("ewemoe", PARAMS["ewemoe"], learned)
    assert trials.experts.evaluate(recipe, "select").metrics() == reports[-1][1]


def test_what_a_sweep_needs_and_says(tiny_pool):
    methods = {
        "wemoe": {"steps": 2, "batch_size": 8, "adapt_on": "report"},
        "concrete_adamerging": {**PARAMS["concrete_adamerging"], "tasks_at_once": 2},
    }
    spec = validate(tiny_pool.spec(methods=methods), "s.yaml")
    found = needs_of(spec, NAMES, ("a", "b"))
    assert (found.adapts_on, found.images, found.kept) == ({"fit", "report"}, 8, 7.0)
    # A step of the first stage looks at two batches of each of three tasks.
    images = learned_images(spec)
    assert images == {"wemoe": 2 * 8 * 3, "concrete_adamerging": (2 * 4 + 5) * 4 * 3}
    entry = Entry("k", "concrete_adamerging", "resident", {"steps": 4}, "done", "select", steps=9)
    assert asked_steps(entry) == 1004
    notes = notes_of("wemoe", methods["wemoe"], SplitSpec())
    assert notes == ("adapted to the unlabelled test images it is reported on",)
    assert notes_of("wemoe", {"steps": 0}, SplitSpec()) == ()
    wrong = validate(tiny_pool.spec(methods={"ewemoe": {"steps": 3}}), "s.yaml")
    broken = wrong.model_copy(
        update={
            "methods": {
                "ewemoe": wrong.methods["ewemoe"].model_copy(update={"params": {"prun": 1}})
            }
        }
    )
    with pytest.raises(InputError, match=r"methods\.ewemoe: .*did you mean 'prune'"):
        needs_of(broken, NAMES, ("a", "b"))
