"""What runs is decided once: every method alone, for experts of tasks and for ingredients."""

import copy

import pytest

from actors.artifacts.recipe import REFERENCES, Recipe
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.pool.pool import task_vectors
from fusion.errors import InputError
from fusion.registry import METHODS, Learned
from sweeps.cluster import ray_connection
from sweeps.execution import run
from sweeps.planning.prepare import prepare
from sweeps.results.folder import SweepFolder
from sweeps.spec.candidates import planned, random_points
from sweeps.spec.reference_methods import completed
from sweeps.spec.sweep import dump, spec_hash, validate
from sweeps.trials.trainable import learner_of
from tests.sweeps.learning_pool import make_extractor

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {
    "steps": 2, "batch_size": 4, "examples": 8, "epochs": 2, "coefficient_steps": 1, "betas": 3,
    "temperatures": 2, "max_iter": 50, "shots": 4, "save_every": 1,
}  # fmt: skip
"""Parameters that make any method short."""

CANNOT = {
    ("ingredients", "fisher"), ("ingredients", "regmean"), ("ingredients", "regmean_plusplus"),
    ("ingredients", "lot"), ("ingredients", "surgery"),
    ("ingredients", "emr"), ("ingredients", "tall_mask"),
}  # fmt: skip
"""Those that need an expert's own task are refused before anything starts."""


@pytest.fixture(scope="module")
def kept() -> dict:
    """Data and experts of a pool, once."""
    return {}


def spec_of(pool, kind: str, method: str, extractor) -> dict:
    """A sweep of one method."""
    content = copy.deepcopy(pool.spec())
    if kind == "ingredients":
        experts = content["pool"]["experts"]
        content["pool"]["experts"] = {f"run_{name}": source for name, source in experts.items()}
        content["tasks"] = {"shapes": content["tasks"]["blobs"]}
    first = list(content["pool"]["experts"])[:2]
    params = {name: SHORT[name] for name in METHODS[method].parameters if name in SHORT}
    if method == "ensemble":
        params = {}
    if method in ("slerp", "nuslerp"):
        params["experts"] = first
    if method in ("wise_ft", "nearswap", "arcee_fusion"):
        params["expert"] = first[0]
    if method == "dawe":
        params["extractor"] = str(extractor)
    return {**content, "methods": {method: params}}


def cases():
    """Every method for both kinds of pools; of each kind of method, the first one each time."""
    seen = set()
    for method, row in METHODS.items():
        for kind in ("ingredients", "experts"):
            fast = (kind, type(row)) not in seen and (kind == "ingredients" or len(seen) < 4)
            seen.add((kind, type(row)))
            yield pytest.param(kind, method, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("kind", "method"), cases())
def test_every_method_alone(method, kind, kept, tiny_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "home", lambda: None)  # no Ray, so no other node
    extractor = make_extractor(tmp_path / "resnet")
    asked = validate(spec_of(tiny_pool, kind, method, extractor), "s.yaml")
    try:
        prepared = prepare(asked, tmp_path, ray_connection.this_machine())
    except InputError:
        assert (kind, method) in CANNOT
        return
    assert (kind, method) not in CANNOT
    extractors = list(prepared.needs.extractors.values())
    data = prepare_data(
        prepared.pool.base, prepared.tasks, prepared.splits, prepared.roles, cache_dir(),
        extractors=extractors,
    )  # fmt: skip
    vectors = kept.setdefault(kind, None) or task_vectors(prepared.pool)
    kept[kind] = vectors
    experts = local_experts(prepared.pool, data, prepared.embeddings(), vectors=vectors)
    inputs = run.learning_inputs(prepared, data, SweepFolder(tmp_path / "s"), everywhere=False)
    for name, entry in prepared.spec.methods.items():
        for params in random_points(entry, name, 0):
            if isinstance(METHODS[name], Learned):
                assert inputs is not None
                config = {"method": name, "params": params, "trial_key": name, "seed": 0}
                found = []
                learner_of(name)(
                    config, experts, inputs, lambda *given, to=found: to.append(given[1])
                )
            else:
                found = [experts.evaluate(Recipe(name, params), "select")]
            assert found[-1].metrics().keys() >= {"acc/mean"}, name


def test_what_is_planned_needed_and_run_is_one_spec(tiny_pool, tmp_path):
    for kind in ("experts", "ingredients"):
        asked = validate(spec_of(tiny_pool, kind, "uniform_soup", None), "s.yaml")
        prepared = prepare(asked, tmp_path, ray_connection.this_machine())
        assert prepared.spec == completed(asked) == completed(prepared.spec)
        assert planned(prepared.spec).keys() == prepared.spec.methods.keys()
        assert prepared.spec.methods.keys().isdisjoint(REFERENCES)
        # What a sweep is, and what is kept of it, is what was asked for.
        assert dump(asked) != dump(prepared.spec)
        assert spec_hash(asked) == spec_hash(
            validate(spec_of(tiny_pool, kind, "uniform_soup", None), "t")
        )
