"""The documentation site has every page and every public name; its hooks find the other pages."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

import fusion
import sweeps
from tests.examples.conftest import ROOT

DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """YAML whose Python objects are left out."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)

CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docs/site_hooks.py`, without the libraries that build the site."""
    names = {
        "griffe": {"Extension": object, "Object": object},
        "mermaidx": {"render": lambda text: SimpleNamespace(svg=lambda: f"<svg>{text}</svg>")},
        "mkdocs.config.defaults": {"MkDocsConfig": object},
        "mkdocs.structure.files": {"File": object, "Files": object},
        "mkdocs.structure.pages": {"Page": object},
    }
    for name, content in names.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    for name in ("mkdocs", "mkdocs.config", "mkdocs.structure"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nav_pages(part: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(part, str):
        return [part]
    return [page for inner in part for page in nav_pages(list(inner.values())[0])]  # noqa: RUF015


def test_the_navigation_has_every_page_once(hooks: ModuleType) -> None:
    pages = nav_pages(CONFIG["nav"])
    assert len(pages) == len(set(pages))
    ours = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(pages) == ours | set(hooks.OUTSIDE.values())
    assert all((ROOT / path).is_file() for path in hooks.OUTSIDE)


def documented() -> list[str]:
    """The names that the API pages describe."""
    texts = [path.read_text() for path in sorted(DOCS.glob("api/*.md"))]
    return [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def test_every_public_name_is_on_an_api_page_once() -> None:
    names = documented()
    assert len(names) == len(set(names))
    public = {f"fusion.{name}" for name in (*fusion.EXPORTS, *fusion.METHOD_MODULES)}
    public |= {f"sweeps.{name}" for name in sweeps.EXPORTS}
    assert set(names) >= public
    assert "fusion.testing.check_methods" in names


@pytest.mark.parametrize("name", documented())
def test_documented_names_exist(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_links_lead_to_where_the_site_has_the_pages(hooks: ModuleType) -> None:
    def at(page: str, text: str) -> str:
        return hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)))

    assert at("index.md", "[a](../README.md) [b](data.md#x)") == "[a](readme.md) [b](data.md#x)"
    assert at("readme.md", "[a](docs/data.md) [b](CONTRIBUTING.md)") == (
        "[a](data.md) [b](contributing.md)"
    )
    assert at("readme.md", "[a](#x) [b](https://a.b/c)") == "[a](#x) [b](https://a.b/c)"
    assert at("results.md", "[a](../benchmarks/results/b.md)") == "[a](benchmarks/results/b.md)"
    assert at("api/merge.md", "[a](../data.md)") == "[a](../data.md)"
    assert at("benchmarks/results/b.md", "[a](../../README.md)") == "[a](../../readme.md)"
    assert at("commands.md", r"| `a \| b` \| |") == r"| `a | b` \| |"


def test_diagrams_are_drawn_when_the_site_is_built(hooks: ModuleType) -> None:
    config = hooks.on_config(SimpleNamespace(mdx_configs={}))
    (fence,) = config.mdx_configs["pymdownx.superfences"]["custom_fences"]
    assert fence["name"] == "mermaid"
    drawn = fence["format"]("a --> b", "mermaid")
    assert drawn.endswith("><svg>a --> b</svg></div>")


def test_doctests_are_blocks_of_code(hooks: ModuleType) -> None:
    docstring = SimpleNamespace(value="Sum.\n\n>>> [[1,\n... 2]]\n[[1, 2]]\n\n    >>> no")
    hooks.Doctests().on_object(obj=SimpleNamespace(docstring=docstring))
    wanted = "Sum.\n\n```pycon\n>>> [[1,\n... 2]]\n[[1, 2]]\n```\n\n    >>> no"
    assert docstring.value == wanted
    hooks.Doctests().on_object(obj=SimpleNamespace(docstring=None))


def test_the_site_asks_no_other_host() -> None:
    assert CONFIG["theme"]["font"] is False
    assert not {"repo_url", "extra_javascript", "extra_css"} & set(CONFIG)


def test_warnings_of_the_site_are_errors() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in recipe
    assert CONFIG["site_dir"].startswith("build/")
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()
    assert set(CONFIG["validation"].values()) == {"warn"}


def test_search_runs_in_pages_opened_as_files() -> None:
    """`offline` would load the shim from another host, had no polyfill this name."""
    assert "offline" in CONFIG["plugins"]
    [shim] = CONFIG["extra"]["polyfills"]
    assert "iframe-worker" in shim
    assert "window.Worker=" in (DOCS / shim).read_text()
    assert "://" not in (DOCS / shim).read_text()
