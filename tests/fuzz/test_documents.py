"""Readers of JSON and YAML: no exception but the product's own, and nothing out of bounds."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actors.files.documents import DEPTH, LOADER, parse_json, parse_yaml, read_bytes, read_json
from fusion.errors import InputError
from tests.fuzz.damage import altered, only_input_errors

CONTENT = {"a": [1, 2.5, "text"], "b": {"c": None, "d": True}, "e": "é"}


@given(altered(json.dumps(CONTENT).encode()))
def test_damaged_json_is_refused_or_is_what_the_json_module_reads(data):
    with only_input_errors():
        assert parse_json(data, "file") == json.loads(data)


@given(altered(yaml.safe_dump(CONTENT).encode()))
def test_damaged_yaml_is_refused_or_is_what_pyyaml_reads(data):
    text = data.decode(errors="replace")
    with only_input_errors():
        assert parse_yaml(text, "file") == yaml.load(text, LOADER)


@given(st.text())
def test_any_text(text):
    with only_input_errors():
        parse_json(text, "file")
    with only_input_errors():
        parse_yaml(text, "file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ("[" * (DEPTH + 1) + "1" + "]" * (DEPTH + 1), "nested more than 64 deep"),
        ('{"a": 1, "a": 2}', "key 'a' given twice"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits; at most 40 allowed"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_json_out_of_bounds(text, said):
    with pytest.raises(InputError, match=said):
        parse_json(text, "config.json")


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path, said in [
        (tmp_path, "not a regular file"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "dangling", "No such file"),
    ]:
        with pytest.raises(InputError, match=said):
            read_bytes(path, "pool.base")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        read_json(file, "pool.base")


def test_a_file_too_large_is_not_read(tmp_path):
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(InputError, match="more than 33,554,432 bytes"):
        read_json(file)
