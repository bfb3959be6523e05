"""Samples for the report: written and read, and what is taken for a picture."""

from __future__ import annotations

import pytest

from sweeps.results.examples import FILE, Example, Examples, read, write


def kept() -> Examples:
    sample = Example(3, "first", 1, (1, 0), "data:image/jpeg;base64,AAAA")
    return Examples("ties", "dare", {"a": ["x", "y"]}, {"a": [sample]})


def test_written_and_read(tmp_path):
    write(kept(), tmp_path)
    found = read(tmp_path)
    assert found is not None
    assert (found.first, found.second, found.classes["a"]) == ("ties", "dare", ["x", "y"])
    (sample,) = found.samples["a"]
    assert (sample.index, list(sample.answers), sample.pictured) == (3, [1, 0], True)


@pytest.mark.parametrize("change", [b"", b"{}", None])
def test_missing_or_damaged_is_none(change, tmp_path):
    if change is not None:
        (tmp_path / FILE).write_bytes(change)
    assert read(tmp_path) is None


@pytest.mark.parametrize(
    "shown",
    ["text", "http://x/y.jpeg", "data:image/svg+xml;base64,AAAA", "data:image/jpeg;base64,\"><x",
     "data:image/png;base64,AAAA\n", "data:text/html;base64,AAAA"],
)  # fmt: skip
def test_nothing_else_is_a_picture(shown):
    assert not Example(0, "first", 0, (), shown).pictured
