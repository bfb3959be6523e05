"""docs/sweep_file.md and docs/training_file.md are what the schemas give."""

import re

import pytest
import yaml

from sweeps.cli.file_formats.fields import FieldOfFile
from sweeps.cli.file_formats.reference_pages import DOCS, PAGES, sweep_page, table
from sweeps.spec.sweep import validate


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    """If this fails: `python -m sweeps.cli.file_formats.reference_pages`."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_the_first_example_is_a_sweep_file() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", sweep_page(), re.DOTALL)
    assert validate(yaml.safe_load(text), "docs").methods.keys() == {"ties"}


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    row = table([FieldOfFile("a", "x|y", "required", "", "a: x")])[2]
    assert row == r"| `a` | x\|y | required | – | `a: x` |"
