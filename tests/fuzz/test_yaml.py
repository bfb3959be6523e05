"""YAML: no exception but the product's own, bounded in work, the same values as were written."""

import math
import time
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actors.files.documents import YAML_VALUES, dump_yaml, parse_json, parse_yaml, read_yaml
from fusion.errors import InputError
from sweeps.spec.errors import SpecErrors
from sweeps.spec.sweep import load, validate
from sweeps.spec.yaml_file import read
from tests.fuzz.damage import altered, mutated, only_input_errors

SPEC = {
    "name": "s",
    "pool": {"base": "b", "experts": {"mnist": "m", "svhn": "s"}},
    "tasks": {"mnist": {"dataset": "d", "classnames": ["0", "1"]}, "svhn": {"dataset": "e"}},
    "splits": {"select": "val", "val_fraction": 0.1, "seed": 3},
    "methods": {"ties": {"density": {"uniform": [0.1, 0.9]}, "trials": 2}, "simple_average": {}},
    "placement": {"replicas": 1, "labels": {"zone": "!in(a, b)"}},
    "shifts": {"dark": {"corruption": "gaussian_noise", "severity": 3}},
    "mlflow": {"tracking_uri": "sqlite:////tmp/x.db", "experiment": "e"},
    "seed": 1,
}

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(
    ["no", "on", "~", "017", "08", "0o17", "12:30", "2024-01-01", "1e5", "1_0.5", "1e+5", ".inf",
     "1.", ".5", "-", "=", "<<", "0x1", "0x_", "0b1", "+1", "1_", "1_e5", "1.e5", "._5", "x: y"]
)  # fmt: skip
"""Texts that a version of YAML takes for something else are among them."""

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | TEXTS
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_what_is_written_is_read_back_equal(content):
    found = parse_yaml(dump_yaml(content), "file")
    assert found == content
    assert repr(found) == repr(content)  # 1 is not True, and 1.0 is not 1


@pytest.mark.parametrize("parse", [parse_yaml, parse_json])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sign_is_no_digit(parse, sign):
    assert parse(str(sign * 10**39), "file") == sign * 10**39
    with pytest.raises(InputError, match="a number of 41 digits; at most 40 allowed"):
        parse(str(sign * 10**40), "file")


@given(altered(yaml.safe_dump(SPEC).encode()))
def test_a_damaged_sweep_file(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("spec") / "spec.yaml"
    file.write_bytes(data)
    said = []
    try:
        load(file)
    except InputError as error:
        said = getattr(error, "lines", [str(error)])
    assert all(line.startswith(str(file)) and "\n" not in line for line in said)


@given(mutated(SPEC))
def test_any_field_of_a_sweep_file(content):
    said: tuple[str, ...] = ()
    with only_input_errors(), suppress(SpecErrors):
        try:
            validate(content, "spec.yaml")
        except SpecErrors as errors:
            said = errors.lines
    assert all("\n" not in line for line in said)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override(tmp_path_factory, key, value):
    file = tmp_path_factory.getbasetemp() / "override.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    with only_input_errors():
        read(file, [f"{key}={value}"])
    with only_input_errors():
        read(file, [f"methods.ties.scale={value}"])


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abc", "bcd", strict=True)
)

SIZE = 1 << 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system [id]", "tag .*python/object/apply:os.system"),
        ("a: !!binary aGk=", "tag .*binary"),
        ("a: !!set {x, y}", "tag .*set"),
        ("a: !!timestamp 2024-01-01", "tag .*timestamp"),
        ("a: !own 1", "tag '!own'"),
        ("!!omap [a: 1]", "tag .*omap"),
        ("a: !!int x", "'x': no int"),
        (BOMB, f"more than {YAML_VALUES:,} values, aliases written out"),
        ("a: &a [*a]", "an alias that holds itself"),
        ("&a {b: {c: *a}}", "an alias that holds itself"),
        ("a: *b", "alias 'b' of no anchor"),
        ("a: 1\na: 2", "line 2: 'a': given twice"),
        ("{a: 1, a: 2}", "'a': given twice"),
        ("1: a\n0x1: b", "1: given twice"),
        ("[a]: 1", "a list or mapping as a key"),
        ("a: &k [1]\n*k : 1", "a list or mapping as a key"),
        ("a: " + "9" * 5000, "a number of 5000 digits; at most 40"),
        ("a: 0x" + "f" * 5000, "digits; at most 40"),
        ("a: 1e999999", "1e999999: too large"),
        ("a: " + "1." + "9" * 5000, "a number of 5002 characters"),
        ("seed: 017", "line 1, column 7: 017: octal in YAML 1.1"),
        ("a: 1\n---\na: 2", "a second document"),
        ("a:\t\tb\n\tc: d", "not YAML"),
        ("a: \0", "not YAML"),
        ('a: "\\ud800"', "not YAML"),
        ("[" * SIZE, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("- " * (SIZE // 2), "nested more than 64 deep"),
        ("? " * (SIZE // 2), "as a key"),
        ("".join(f"%TAG !a{i}! b\n" for i in range(60_000)) + "--- 1", "no %TAG"),
        ("[" + "1," * (SIZE // 2 - 1) + "]", "more than 100,000 values"),
        ("a" * (SIZE + 1), "more than 1,048,576 characters"),
        ("\n".join(f"k{i}: {{a: 1}}" for i in range(60_000)), "more than 100,000 values"),
        ("a: " + "&a " * 1000 + "1", "not YAML"),
    ],
)
def test_what_is_refused(text, said):
    began = time.perf_counter()
    with pytest.raises(InputError, match=said) as caught:
        parse_yaml(text, "file")
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: x\r\n", {"a": 1, "b": "x"}),
        ("a: 12:30", {"a": "12:30"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: [0o17, 08, 1e-3, 1_000, =]", {"a": ["0o17", "08", 0.001, 1000, "="]}),
        ("a: !!str 1\nb: !!float 1.5", {"a": "1", "b": 1.5}),
        ("a: &x {y: [1]}\nb: *x", {"a": {"y": [1]}, "b": {"y": [1]}}),
        ("a: &x {y: 1, z: 2}\nb: {<<: *x, z: 3}", {"a": {"y": 1, "z": 2}, "b": {"y": 1, "z": 3}}),
        ("b: {<<: [{y: 1}, {y: 2, z: 3}]}", {"b": {"y": 1, "z": 3}}),
        ('"<<": 1', {"<<": 1}),
        ("", None),
        ("%YAML 1.2\n--- [a]\n...", ["a"]),
        ("a:\n- x\n- y", {"a": ["x", "y"]}),
        ("[" * 64 + "]" * 64, None),
    ],
)
def test_what_is_read(text, content):
    found = parse_yaml(text, "file")
    assert content is None or found == content


def test_merges_that_multiply_nothing_are_read_and_no_value_is_shared():
    found = parse_yaml(MERGES, "file")
    assert found["d"] == {"x": 1}
    shared = parse_yaml("a: &x {y: []}\nb: *x", "file")
    shared["a"]["y"].append(1)
    assert shared["b"] == {"y": []}


def test_numbers_that_are_none():
    assert math.isnan(parse_yaml("a: .nan", "file")["a"])
    assert parse_yaml("a: -.inf", "file")["a"] == -math.inf


def test_a_file_with_other_bytes(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_bytes("ä: 1".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_yaml(file)
    with file.open("wb") as stream:
        stream.truncate(10 << 20)
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        read_yaml(file)


def test_an_override_cannot_nest_without_end(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    with pytest.raises(InputError, match="nested more than 64 deep"):
        read(file, [".".join(["x"] * 1500) + "=1"])
