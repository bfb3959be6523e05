"""What a row's reader must know."""

import pytest

from sweeps.notes import notes_of
from sweeps.spec import SplitSpec


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
