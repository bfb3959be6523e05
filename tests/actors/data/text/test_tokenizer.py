import json
from pathlib import Path

import pytest

from actors.data.text import tokenizer as module
from actors.data.text.tokenizer import (
    check_vocabulary,
    difference,
    known_tokenizer,
    open_tokenizer,
)
from tests.refusals import one_line
from tests.tiny_text import write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "base", ["a", "cat", "dog"], 20)


def test_all_files_are_in_the_fingerprint(folder):
    first = open_tokenizer(folder, "pool.base")
    assert first.fingerprint == open_tokenizer(folder, "other").fingerprint
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "x": 1}))
    typed = open_tokenizer(folder, "pool.base")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "x": 2}))
    assert open_tokenizer(folder, "pool.base").fingerprint == typed.fingerprint
    (folder / "special_tokens_map.json").write_text("{}")
    again = open_tokenizer(folder, "pool.base")
    assert len({each.fingerprint for each in (first, typed, again)}) == 3


def test_limits(folder):
    assert open_tokenizer(folder, "b").limit(512) == 20
    file = folder / "tokenizer_config.json"
    for stated, limit in ((10**30, 512), (64, 64)):
        file.write_text(json.dumps({"model_max_length": stated}))
        assert open_tokenizer(folder, "b").limit(512) == limit
    file.write_text(json.dumps({"model_max_length": 0.5}))
    with one_line("model_max_length: 0.5; a whole number of at least 1 needed", start="b: "):
        open_tokenizer(folder, "b").limit(512)


def test_the_first_token_that_differs(folder, tmp_path):
    base = open_tokenizer(folder, "pool.base")
    assert difference(base, None) is None
    same = write_tokenizer(tmp_path / "same", ["a", "cat", "dog"], 30)
    assert difference(base, open_tokenizer(same, "e")) is None
    other = open_tokenizer(write_tokenizer(tmp_path / "x", ["a", "dog", "cat", "ox"]), "e")
    assert difference(base, other) == (
        "tokenizer: token 4 is 'dog', in the base 'cat'; 7 tokens, the base has 6"
    )
    longer = open_tokenizer(write_tokenizer(tmp_path / "y", ["a", "cat", "dog", "ox"]), "e")
    assert difference(base, longer) == "tokenizer: 7 tokens, the base has 6"
    rules = json.loads((same / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Lowercase"}
    (same / "tokenizer.json").write_text(json.dumps(rules))
    assert "its normalizer is not the base's" in difference(base, open_tokenizer(same, "e"))
    rules["normalizer"] = None
    rules["added_tokens"][0]["lstrip"] = True
    (same / "tokenizer.json").write_text(json.dumps(rules))
    assert "its added_tokens is not the base's" in difference(base, open_tokenizer(same, "e"))


def test_bad_tokenizers(folder, tmp_path, monkeypatch):
    assert known_tokenizer(tmp_path, "pool.base") is None
    with one_line("no tokenizer; one of tokenizer.json, ", start="pool.base: "):
        open_tokenizer(tmp_path, "pool.base")
    with one_line("the tokenizer's tokens go to 5; the model's table has 5 rows"):
        check_vocabulary(open_tokenizer(folder, "pool.base"), 5)
    check_vocabulary(open_tokenizer(folder, "pool.base"), 6)
    monkeypatch.setattr(module, "LARGEST", 10)
    with one_line("bytes; 10 at most are read"):
        open_tokenizer(folder, "pool.base")
    monkeypatch.undo()
    (folder / "tokenizer.json").write_text("{}")
    with one_line("the tokenizer cannot be read", start="pool.base: "):
        open_tokenizer(folder, "pool.base").load()
