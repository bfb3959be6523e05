"""Hooks of the documentation site (mkdocs.yml): pages outside this folder, diagrams, doctests.

README, CONTRIBUTING, CHANGELOG and the results of benchmarks become pages of the site; links
between all pages are rewritten to where these pages are. Mermaid diagrams are drawn while the site
is built, so that a reader's browser loads no library. Doctests of docstrings become blocks of code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
import mermaidx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

OUTSIDE = {
    "README.md": "readme.md",  # `README` alone would be the home page
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> page of the site."""

RESULTS = "benchmarks/results"

KINDS = (".md", ".png")
"""Files in that folder that the site has."""

STYLE = "background: white; overflow-x: auto"
"""Of diagrams: readable on dark pages, too."""

LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
"""A link to another file: its path and its anchor."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw fenced blocks of the language `mermaid`."""
    fence = {"name": "mermaid", "class": "mermaid", "format": diagram}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def diagram(source: str, *given: Any, **options: Any) -> str:
    """A Mermaid diagram as SVG."""
    return f'<div class="diagram" style="{STYLE}">{mermaidx.render(source).svg()}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside the folder of the documents."""
    found = sorted((ROOT / RESULTS).iterdir())
    results = [path.relative_to(ROOT).as_posix() for path in found if path.suffix in KINDS]
    for path in (*OUTSIDE, *results):
        files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def place(path: str) -> str:
    """Where the site has a file of the repository.

    >>> place("docs/api/merge.md"), place("README.md")
    ('api/merge.md', 'readme.md')
    """
    return OUTSIDE.get(path, path.removeprefix("docs/"))


def origin(page: str) -> str:
    """The file of the repository that a page of the site is made of.

    >>> origin("api/merge.md"), origin("readme.md")
    ('docs/api/merge.md', 'README.md')
    """
    found = {site: path for path, site in OUTSIDE.items()}.get(page)
    return found or (page if page.startswith(RESULTS) else f"docs/{page}")


def on_page_markdown(markdown: str, page: Page, **given: Any) -> str:
    """Rewrite links between files of the repository to links between pages of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(origin(here))

    def rewritten(link: re.Match[str]) -> str:
        aimed = place(posixpath.normpath(posixpath.join(folder, link[1])))
        return f"]({posixpath.relpath(aimed, posixpath.dirname(here) or '.')}{link[2] or ''})"

    return LINK.sub(rewritten, without_escapes(markdown))


def without_escapes(markdown: str) -> str:
    r"""Pipes in code in tables: written `\|` for hosts of Git repositories, `|` here.

    >>> without_escapes(r"| `a \| b` |")
    '| `a | b` |'
    """
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace(r"\|", "|"), markdown)


class Doctests(griffe.Extension):
    """Docstrings of the API pages: doctests become blocks of code."""

    def on_object(self, *, obj: griffe.Object, **given: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    r"""A docstring whose doctests, each up to the next empty line, are fenced blocks.

    >>> fenced("Sum.\n\n>>> 1 + 1\n2\n\nMore.")
    'Sum.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nMore.'
    """
    return re.sub(
        r"^>>> .*(?:\n.+)*", lambda test: f"```pycon\n{test[0]}\n```", docstring, flags=re.M
    )
