"""Families are found by their model type, also those of other packages; nobody else names one."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from actors.families import registry
from fusion.errors import InputError
from tests.toy_family import TYPE, Toy

ROOT = Path(__file__).parents[3]

WORDS = re.compile(
    r"(?i)(?<![a-z])clip(?!_norm|ped|[a-z])|image_size|\bvision_|zero_shot|pixels?\b|pixel_"
)

ELSEWHERE = (
    "actors/families/clip/",
    "actors/families/vision/",
    "actors/data/images/",
    "actors/embedded/",
)
"""Where the family, its data kind and the demo pool are."""

ALLOWED = {
    "actors/families/registry.py": "the registry's row; training and published gates are CLIP's",
    "actors/families/images/": "what families that read images share",
    "actors/gate_features/": "a ResNet and corruptions read images",
    "actors/training/": "gradients are clipped by torch's function",
    "actors/experts/prepare_data.py": "captioned images, which a base is pretrained on",
    "actors/artifacts/cache_files.py": "`pixels` is the name of a cache folder",
    "actors/artifacts/head_file.py": "`zero_shot` is a kind of head in files",
    "actors/data/prompts/": "the file with the prompts",
    "sweeps/train/": "training files of image models, and the kind of head",
    "sweeps/planning/": "the kind of head, corrupted images, the words of `sweeps plan`",
    "sweeps/spec/sweep.py": "examples of hub ids",
    "sweeps/cli/file_formats/reference_pages.py": "a hub id in an example",
    "sweeps/results/export/model_folder.py": "a file that exports copy",
}
"""Path -> why it names a word of the family all the same."""


def words_of(path: Path) -> set[str]:
    """The family's words among names and strings; docstrings and comments are not counted."""
    kinds = {tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    code = (t.string for t in tokens if t.type in kinds and not t.string.startswith('"""'))
    return {match[0] for text in code for match in WORDS.finditer(text)}


def named() -> dict[str, set[str]]:
    """Path -> the family's words in it, outside its own folders."""
    files = [path for package in ("actors", "sweeps") for path in (ROOT / package).rglob("*.py")]
    paths = {str(path.relative_to(ROOT)): path for path in files}
    return {
        name: words
        for name, path in sorted(paths.items())
        if not name.startswith(ELSEWHERE) and (words := words_of(path))
    }


def test_nobody_else_names_the_family():
    found = named()
    assert not [name for name in found if not name.startswith(tuple(ALLOWED))]
    unused = [path for path in ALLOWED if not any(name.startswith(path) for name in found)]
    assert not unused


def test_a_word_is_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""CLIP."""\nimage_size = f(clip_norm)\nclipped = "CLIP"\n')
    assert words_of(file) == {"image_size", "CLIP"}


def test_an_unknown_model_type_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as error:
        registry.family_of({"model_type": "gpt2"}, "pool.base: config.json")
    line = str(error.value)
    assert line.startswith("pool.base: config.json: model_type 'gpt2'; allowed: clip, clip_vision")
    for kind, family in registry.by_type().items():
        assert kind in line
        assert all(each in line for each in family.model_types[kind])


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["clip"]}])
def test_a_model_type_that_is_no_name(config):
    with pytest.raises(InputError, match="allowed: clip"):
        registry.family_of(config, "x")


def test_an_installed_package_brings_a_family(monkeypatch, tmp_path):
    (tmp_path / "toy-1.dist-info").mkdir()
    (tmp_path / "toy-1.dist-info/METADATA").write_text("Name: toy\nVersion: 1\n")
    (tmp_path / "toy-1.dist-info/entry_points.txt").write_text(
        f"[{registry.GROUP}]\ntoy = tests.toy_family:TOY\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))
    registry.plugins.cache_clear()
    try:
        assert isinstance(registry.family_of({"model_type": TYPE}, "x"), Toy)
    finally:
        registry.plugins.cache_clear()
