"""What a row's reader must know."""

import pytest

from fusion.registry import METHODS
from sweeps.results.rows.disclosures import CHOSEN_ON_FIT, notes_of, notes_of_pool, recognition
from sweeps.spec.sweep import SplitSpec


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("ties", {}, ()),
        ("pretrained", {}, ()),
        ("dawe", {"extractor": "x"}, ("adapted to unlabelled train images",)),
        ("dawe", {"extractor": "x", "steps": 0}, ()),
        ("adamerging", {"adapt_on": "select"}, ("adapted to unlabelled val images",)),
        (
            "adamerging",
            {"adapt_on": "report"},
            ("adapted to the unlabelled test images it is reported on",),
        ),
        ("dawin", {"granularity": "sample"}, ()),
        (
            "dawin",
            {"granularity": "sample", "expertise": "label"},
            ("oracle: reads the labels it is measured by",),
        ),
        (
            "dawin",
            {},
            ("coefficients read off all images it is measured on, without labels",),
        ),
    ],
    ids=str,
)
def test_notes(method, params, expected):
    assert notes_of(method, params, SplitSpec()) == expected


def test_recognition_is_said_of_each_task_and_their_mean():
    measured = {"acc/a": 0.5, "recognition/a": 0.875, "recognition/b": 0.5}
    means = {"recognition/mean": 0.6875, "recognition/seen": 0.6875}
    assert recognition({**measured, **means}, "image") == (
        "recognition: the task's own expert has the largest weight on 68.8 % of images"
        " (a 87.5, b 50.0)",
    )
    assert recognition({"acc/mean": 0.5, "recognition/mean": None}, "image") == ()


def test_choosing_on_the_rows_that_are_trained_on_is_said():
    same, apart = SplitSpec(select="train"), SplitSpec()
    assert notes_of("greedy_soup", {}, same) == (CHOSEN_ON_FIT,)
    assert notes_of("greedy_soup", {}, apart) == ()
    assert notes_of("tip_adapter", {}, same)[0].endswith(f"task by task; {CHOSEN_ON_FIT}")
    assert "being" not in notes_of("greedy_ensemble", {}, same)[0]  # it fits on select alone
    assert notes_of("oracle_single", {}, same) == (
        "oracle: chosen by the labels it is measured by",
    )


def test_copies_and_a_single_ingredient_are_said_of_averages_alone():
    equal = {"a": "x", "b": "x", "c": "x"}
    assert notes_of_pool("ensemble", equal) == ("b is a copy of a", "c is a copy of a")
    assert notes_of_pool("learned_soup", {"a": "x"}) == ("one ingredient: nothing is averaged",)
    assert notes_of_pool("best_single", equal) == ()
    assert notes_of_pool("uniform_soup", {"a": "x", "b": "y"}) == ()


def test_a_method_of_statistics_or_of_known_tasks_says_so():
    assert notes_of("regmean", {}, SplitSpec()) == (
        "statistics of unlabelled train images, of each expert on its own task",
    )
    assert notes_of("emr", {}, SplitSpec()) == (
        "one model a task: of each image it must be known which task it is of",
    )


CHOICES = [
    {"adapt_on": role, "steps": 1} for role in ("fit", "select", "report")
] + [{"granularity": "sample"}, {}]  # fmt: skip
"""Parameters on which notes depend; methods read those that they have."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("under", ["", "typos, severity 3"])
def test_notes_of_text_pools_say_texts_where_those_of_image_pools_say_images(method, under):
    parameters = METHODS[method].parameters
    needed = {name: "x" for name, each in parameters.items() if each.required}
    for choice in CHOICES:
        known = {
            name: value
            for name, value in choice.items()
            if name in parameters and value in (parameters[name].choices or (value,))
        }
        given = (method, needed | known, SplitSpec())
        images, texts = (
            notes_of(*given, unseen=("c",), under=under, unit=unit) for unit in ("image", "text")
        )
        assert notes_of(*given, unseen=("c",), under=under) == images
        assert [note.replace("image", "text") for note in images] == list(texts)
        assert not [note for note in texts if "image" in note]


def test_the_word_for_a_row_is_in_the_notes_that_name_rows():
    kinds = {}
    for method, row in METHODS.items():
        needed = {name: "x" for name, each in row.parameters.items() if each.required}
        found = " ".join(notes_of(method, needed, SplitSpec(), unseen=("c",), unit="text"))
        kinds[type(row).__name__] = kinds.get(type(row).__name__, False) or "text" in found
    assert kinds == {
        "Static": False, "StatisticsBased": True, "PerTask": True, "Selected": False,
        "Adaptive": True,
        "InModel": True, "Gated": True, "Routed": True, "LogitSpace": False, "Fitted": False,
        "Composed": False, "Adapted": True,
    }  # fmt: skip
