"""Sweep files that import methods: found, kept in the copy, part of trial keys, refused by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fusion import outside_methods
from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.results.partial_comparison import kept_spec
from sweeps.spec import trial_key
from sweeps.spec.diff import check_extends
from sweeps.spec.sweep import dump, load, load_data, spec_hash
from tests.fusion.outside_modules import MODULE, undone, write


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with undone():
        trial_key.code_of.cache_clear()
        yield
    trial_key.code_of.cache_clear()


def sweep(folder: Path, **methods: object) -> Path:
    content = {
        "name": "own",
        "pool": {"base": "models/base", "experts": {"a": "models/a"}},
        "tasks": {"a": {"dataset": "data/a"}},
        "methods": methods,
    }
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_module_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, "outside_a")
    file = sweep(tmp_path, **{"import": "outside_a", "outside_a": {"scale": {"grid": [0.1, 0.2]}}})
    spec = load(file)
    assert spec.imports == ("outside_a",)
    assert list(spec.methods) == ["outside_a"]
    assert METHODS["outside_a"].bound({}) == {"scale": 0.5}


def test_several_modules_and_those_of_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write(tmp_path, "outside_a")
    write(tmp_path, "outside_b")
    write(here, "outside_c")
    monkeypatch.chdir(here)
    file = sweep(tmp_path, **{"import": ["outside_a", "outside_b"], "outside_c": {}})
    assert load(file, modules=["outside_c", "outside_a"]).imports == (
        "outside_a",
        "outside_b",
        "outside_c",
    )
    with pytest.raises(InputError, match=r"methods\.outside_b\.scael: .*did you mean 'scale'"):
        load(file, ["methods.outside_b.scael=1"], ["outside_c"])


def test_the_copy_imports_again_and_the_hash_knows_no_names(tmp_path: Path) -> None:
    write(tmp_path, "outside_a")
    spec = load(sweep(tmp_path, **{"import": "outside_a", "ties": {}, "outside_a": {}}))
    text = dump(spec)
    assert yaml.safe_load(text)["methods"]["import"] == ["outside_a"]
    again = load_data(yaml.safe_load(text), "copy")
    assert (again, again.imports) == (spec, spec.imports)
    named = load(sweep(tmp_path, ties={}, outside_a={}), modules=["outside_a"])
    assert spec_hash(named) == spec_hash(spec)
    more = load(sweep(tmp_path, ties={}, dare={}, outside_a={}), modules=["outside_a"])
    check_extends("outputs/own", text, dump(more), extend=True)


def test_a_file_among_results_imports_nothing(tmp_path: Path) -> None:
    write(tmp_path, "outside_a", "raise SystemExit('imported')")
    sweep(tmp_path, **{"import": "outside_a", "ties": {}}).rename(tmp_path / "spec.yaml")
    spec = kept_spec(tmp_path)
    assert spec is not None
    assert (spec.imports, list(spec.methods)) == (("outside_a",), ["ties"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("outside_none", "own.yaml: methods.import: 'outside_none': no such module: not installed"),
        (7, "own.yaml: methods.import: 7: the name of a module, or a list of names, allowed"),
        ([["a"]], "methods.import: [['a']]: the name of a module, or a list of names, allowed"),
        ("../x", "own.yaml: methods.import: '../x': the name of a Python module needed"),
        ("outside_taken", "outside_taken: method 'ties': the name is taken by this package"),
        ("outside_bad", "'outside_bad': ZeroDivisionError: division by zero"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, given: object, message: str) -> None:
    write(tmp_path, "outside_taken", MODULE.replace("{name}", "ties"))
    write(tmp_path, "outside_bad", "1 / 0")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load(sweep(tmp_path, **{"import": given, "ties": {}}))
    assert "\n" not in str(error.value)


def test_an_unknown_method_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown method 'tise'; did you mean 'ties'\?"):
        load(sweep(tmp_path, tise={}))


def test_trial_keys_change_with_the_modules_code(tmp_path: Path) -> None:
    file = write(tmp_path, "outside_a")
    load(sweep(tmp_path, **{"import": "outside_a", "ties": {}}))
    context = {"common": "x"}
    one = trial_key.trial_key("outside_a", {}, context)
    assert trial_key.trial_key("outside_a", {"scale": 0.5}, context) == one
    ties = trial_key.trial_key("ties", {}, context)
    file.write_text(file.read_text() + "# changed\n")
    trial_key.code_of.cache_clear()
    assert trial_key.trial_key("outside_a", {}, context) != one
    assert trial_key.trial_key("ties", {}, context) == ties


def test_trial_keys_change_with_what_the_module_imports_beside_it(tmp_path: Path) -> None:
    alone = write(tmp_path, "outside_a")
    load(sweep(tmp_path, **{"import": "outside_a", "ties": {}}))
    before = trial_key.code_of("outside_a")
    helper = tmp_path / "outside_helper.py"
    helper.write_text("X = 1\n")
    trial_key.code_of.cache_clear()
    assert trial_key.code_of("outside_a") == before  # nothing imports it
    alone.write_text("import outside_helper\n" + alone.read_text())
    keys = []
    for value in (1, 2):
        helper.write_text(f"X = {value}\n")
        trial_key.code_of.cache_clear()
        keys.append(trial_key.code_of("outside_a"))
    assert keys[0] != keys[1]


def test_the_code_of_a_package_is_all_its_files_wherever_it_lies(tmp_path: Path) -> None:
    def made(place: Path) -> str:
        (place / "outside_pkg" / "parts").mkdir(parents=True)
        write(place / "outside_pkg", "rule", MODULE.replace("{name}", "outside_rule"))
        (place / "outside_pkg" / "__init__.py").write_text(
            "from outside_pkg.rule import METHODS as METHODS"
        )
        (place / "outside_pkg" / "parts" / "more.py").write_text("X = 1\n")
        with undone():
            trial_key.code_of.cache_clear()
            load(sweep(place, **{"import": "outside_pkg", "ties": {}}))
            assert outside_methods.source_of("outside_pkg") == place / "outside_pkg"
            return trial_key.code_of("outside_pkg")

    one = made(tmp_path / "one")
    assert made(tmp_path / "two") == one
    file = tmp_path / "two" / "outside_pkg" / "parts" / "more.py"
    file.write_text("X = 2\n")
    with undone():
        trial_key.code_of.cache_clear()
        load(sweep(tmp_path / "two", **{"import": "outside_pkg", "ties": {}}))
        assert trial_key.code_of("outside_pkg") != one
