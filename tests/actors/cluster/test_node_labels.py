"""Label selectors mean here what they mean to Ray."""

import pytest

from actors.cluster.node_labels import matches, selector
from fusion.errors import InputError

LABELS = {"zone": "a", "gpu": "h100"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"zone": "a"}, True),
        ({"zone": "b"}, False),
        ({"zone": "!b"}, True),
        ({"zone": "!a"}, False),
        ({"zone": "in(a,b)"}, True),
        ({"zone": "in( b , a )"}, True),
        ({"zone": "in(b)"}, False),
        ({"zone": "!in(b,c)"}, True),
        ({"zone": "!in(a)"}, False),
        ({"zone": "a", "gpu": "a100"}, False),
        ({"rack": "1"}, False),
        ({"rack": "!1"}, True),
    ],
)
def test_selectors(wanted, expected):
    assert matches(LABELS, wanted) is expected


def test_what_is_no_selector_is_refused():
    with pytest.raises(InputError, match=r"^placement\.labels\.zone: 'in\(a'; value, !value"):
        matches(LABELS, {"zone": "in(a"})


def test_a_shard_that_fits_everywhere_selects_no_node():
    assert selector((), {"zone": "a"}) == {"zone": "a"}
