"""A path that is built from a name stays inside its folder."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.files.paths import inside
from fusion.errors import InputError


@given(st.text())
def test_the_result_lies_directly_in_the_folder_or_the_name_is_refused(name):
    folder = Path("/outputs/sweep")
    with suppress(InputError):
        path = inside(folder, name, "ledger: trial_key")
        assert path.parent == folder
        assert path.name == name
        assert Path(str(path)).resolve().parent == folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../victim", "/abs", "a/b", "a\\b", ".x", "a\0", "é" * 200]
)
def test_names_that_leave_the_folder(name):
    with pytest.raises(InputError, match="a plain name needed"):
        inside(Path("/outputs"), name, "recipe: experts")


@pytest.mark.parametrize("name", ["mnist", "a b", "é", "run.1", "x" * 255])
def test_plain_names(name):
    assert inside(Path("/outputs"), name, "recipe") == Path("/outputs") / name
