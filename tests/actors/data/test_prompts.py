import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.data.prompts import builtin, table


def digest(strings: Sequence[str]) -> str:
    text = json.dumps(list(strings), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "classes", "classnames", "templates"),
    [
        ("sun397", 397, "a4f4852ca744ee41", "a118094503852c72"),
        ("stanford-cars", 196, "806f065c9e4129d6", "03c119ddb895ecc1"),
        ("stanford_cars", 196, "806f065c9e4129d6", "03c119ddb895ecc1"),
        ("cars", 196, "806f065c9e4129d6", "03c119ddb895ecc1"),
        ("resisc45", 45, "a040a94ab0f85b1b", "39d2e6a1989c1c9e"),
        ("eurosat", 10, "95a875a9a8093ab0", "bdb0d0ac4034d5e3"),
        ("svhn", 10, "47538d1023947674", "9caf1cc414dcf777"),
        ("gtsrb", 43, "dd20888f97076775", "3cfbb4164e1e0cb0"),
        ("mnist", 10, "47538d1023947674", "9caf1cc414dcf777"),
        ("dtd", 47, "830b9f149466303e", "523c35da38f72617"),
    ],
)
def test_the_published_lists(task: str, classes: int, classnames: str, templates: str) -> None:
    found = builtin(task)
    assert found is not None
    assert len(found.classnames) == classes
    assert (digest(found.classnames), digest(found.templates)) == (classnames, templates)


def test_every_template_has_one_place_for_the_name() -> None:
    for name, prompts in table().items():
        assert all(template.count("{}") == 1 for template in prompts.templates), name
        assert len(set(prompts.classnames)) == len(prompts.classnames), name


def test_unknown() -> None:
    assert builtin("no-such-task") is None


def test_the_small_tasks_match_their_data() -> None:
    data = Path(os.environ.get("FUSION_SWEEPS_REAL_DATA", "../shared/data/images"))
    if not data.exists():
        pytest.skip(
            "the real data sets are not here; $FUSION_SWEEPS_REAL_DATA may name their folder"
        )
    for folder in data.iterdir():
        found = builtin(folder.name)
        assert found is not None
        meta = json.loads((folder / "meta.json").read_text())
        assert list(found.classnames) == meta["classnames"]
