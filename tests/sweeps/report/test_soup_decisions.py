"""How decisions of a greedy soup are put into words."""

from sweeps.report.soup_decisions import tables
from tests.sweeps.conftest import entry

TAKEN = {
    "candidate": "a b", "ingredient": "b", "outcome": "accepted", "score": 0.81, "best": 0.8,
    "note": "", "gain": 0.01, "low": -0.002, "high": 0.021, "p": 0.2,
}  # fmt: skip
LEFT = {
    "candidate": "a b c", "ingredient": "c", "outcome": "rejected", "score": 0.7, "best": 0.81,
    "note": "",
}  # fmt: skip


def selected(key, method, choices, **params):
    return entry(key, method, kind="selected", params=params, choices=choices)


def test_soups_come_first_and_only_selected_trials_are_shown():
    single = selected(
        "k1", "best_single", [{"candidate": "a", "score": 0.8, "outcome": "accepted"}]
    )
    soup, other = (
        selected("k2", "greedy_soup", [TAKEN, LEFT]),
        selected("k3", "greedy_soup", [LEFT]),
    )
    found = tables([single, soup, other], {"best_single": "k1", "greedy_soup": "k2"}, "acc/mean")
    assert [each["method"] for each in found] == ["greedy_soup", "best_single"]
    assert found[0]["summary"] == "1 of 2 taken; gains whose 95 % interval lies above 0: none."
    first, second = found[0]["lines"]
    assert (first["what"], first["outcome"], first["score"]) == ("b", "taken", "81.00")
    assert first["gain"] == "+1.0 pp (−0.2 to +2.1), p = 0.20"
    assert (second["outcome"], second["best"], second["gain"]) == ("left", "81.00", "")


def test_a_loss_is_shown_in_nats():
    soup = selected("k", "greedy_soup", [LEFT], metric="nll/mean")
    (found,) = tables([soup], {"greedy_soup": "k"}, "acc/mean")
    assert found["lines"][0]["score"] == "0.7000"
