"""Figures of docs/results.md and of the README's tables are those of the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

LINK = re.compile(r"\]\((?:\.\./)?benchmarks/results/([\w.-]+\.md)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")


def numbers(text: str) -> list[str]:
    """Unsigned decimal numbers of a text, as they are written."""
    return NUMBER.findall(text.replace(",", ""))


def is_rounded(figure: str, known: list[str]) -> bool:
    """Whether a figure is one of the known numbers, rounded to the figure's digits."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    return any(abs(float(figure) - float(value)) <= half for value in known)


def content(files: list[str]) -> list[str]:
    """Numbers of result files' tables."""
    lines = "\n".join((RESULTS / name).read_text() for name in files).splitlines()
    return numbers("\n".join(line for line in lines if line.startswith("|")))


def speed_rows() -> list[tuple[str, str, str]]:
    """(what, ratio, file) of the table of speed and memory."""
    page = (ROOT / "docs" / "results.md").read_text().partition("## Speed and memory")[2]
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    return [(row[1].strip(), row[2].strip(), LINK.findall(row[4])[0]) for row in rows]


@pytest.mark.parametrize(("what", "ratio", "file"), speed_rows())
def test_ratios_are_those_of_their_file(what: str, ratio: str, file: str) -> None:
    known = content([file])
    assert numbers(ratio), what
    assert [figure for figure in numbers(ratio) if not is_rounded(figure, known)] == []


def sections(page: Path) -> list[tuple[str, list[str]]]:
    """(text of a section, the files that its text names), tables included."""
    found = []
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        text = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
        if files := LINK.findall(text):
            found.append((section, files))
    return found


@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("docs/results.md", 5)])
def test_accuracies_are_those_of_their_files(page: str, count: int) -> None:
    found = sections(ROOT / page)
    assert len(found) == count
    for section, files in found:
        written = "\n".join((RESULTS / name).read_text() for name in files)
        for figure in re.findall(r"\d+\.\d", LINK.sub("", section)):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}", written), (figure, files)


def test_the_page_of_choices_has_figures_of_its_files() -> None:
    page = (ROOT / "docs" / "which_method.md").read_text()
    files = LINK.findall(page)
    assert len(files) == 4
    written = "\n".join((RESULTS / name).read_text() for name in files)
    for figure in re.findall(r"\d+\.\d+", LINK.sub("", page)):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}", written), figure


def test_a_figure_that_is_not_in_the_file_is_found() -> None:
    assert is_rounded("1.2", ["1.23"])
    assert not is_rounded("1.2", ["1.26", "1.14"])
    assert numbers("0.97–1.23, > 6.7; ViT-B/32") == ["0.97", "1.23", "6.7", "32"]
