"""Defaults of gates on text."""

from sweeps.spec.sweep import SweepSpec
from sweeps.spec.text_defaults import for_texts


def params_of(given: dict) -> dict:
    spec = SweepSpec.model_validate(
        {
            "name": "s",
            "pool": {"base": "b", "experts": {"a": "c"}},
            "tasks": {"a": {"dataset": "d"}},
            "methods": {"dawe": given, "ties": {}},
        }
    )
    found = for_texts(spec)
    assert for_texts(found) == found
    assert found.methods["ties"] == spec.methods["ties"]
    return dict(found.methods["dawe"].params)


def test_gates_read_the_base_at_a_rate_per_norm():
    wanted = {"extractor": "base", "rate": "per_norm", "learning_rate": 5e-3}
    assert params_of({}) == wanted
    assert params_of({"learning_rate": 0.01}) == {**wanted, "learning_rate": 0.01}
    published = {"extractor": "x", "rate": "plain", "learning_rate": 5e-6}
    assert params_of(published) == published


def test_a_rate_that_is_given_keeps_the_method_s_learning_rate():
    assert params_of({"rate": "per_norm"}) == {"extractor": "base", "rate": "per_norm"}
