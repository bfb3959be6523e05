"""Reading sweep files: strict YAML, numbers, and `--set`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fusion.errors import InputError
from sweeps.spec.search_space import Grid, LogUniform
from sweeps.spec.sweep import load
from tests.sweeps.spec.sweep_file import plain, write


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", "+1e-3", ".1e-2", "0.001", "1.0e-3"])
def test_numbers_with_exponents_are_numbers(tmp_path: Path, number: str) -> None:
    text = json.dumps(plain(methods={})).replace(
        '"methods": {}',
        f'"methods": {{"ties": {{"density": {number}}}, '
        f'"wise_ft": {{"alpha": {{"loguniform": [{number}, 1]}}, "trials": 1}}}}',
    )
    spec = load(write(tmp_path, text))
    assert spec.methods["ties"].params == {"density": 0.001}
    assert spec.methods["wise_ft"].params == {"alpha": LogUniform(0.001, 1.0)}


def test_overrides(tmp_path: Path) -> None:
    methods = {
        "ties": {"scale": {"uniform": [0.2, 1.0]}, "trials": 16},
        "wise_ft": {"alpha": {"uniform": [0, 1]}, "trials": 8, "searcher": "tpe"},
        "ensemble": None,
    }
    path = write(tmp_path, yaml.safe_dump(plain(methods=methods, placement="auto")))
    spec = load(
        path,
        [
            "methods.ties.trials=4",
            "methods.wise_ft.alpha={grid: [0.5, 1e-1]}",
            "methods.wise_ft.trials=null",
            "methods.wise_ft.searcher=random",
            "splits.select=test",
            "methods.ensemble.average=features",
            "placement={replicas: 2}",
            "pool.base=folder/with=sign",
        ],
    )
    assert spec.methods["ties"].trials == 4
    assert spec.methods["wise_ft"].params == {"alpha": Grid((0.5, 0.1))}
    assert spec.methods["ensemble"].params == {"average": "features"}
    assert (spec.splits.select, spec.splits.select_spelled) == ("test", True)
    assert (spec.placement.replicas, spec.pool.base) == (2, "folder/with=sign")


def test_overrides_make_what_is_absent_and_find_names_with_dots(tmp_path: Path) -> None:
    data = plain(pool={"base": "b", "experts": {"run.1": "m"}})
    spec = load(
        write(tmp_path, yaml.safe_dump(data)),
        ["mlflow.experiment=x", "pool.experts.run.1=other", "pool.experts.two=t"],
    )
    assert spec.mlflow.experiment == "x"
    assert spec.pool.experts == {"run.1": "other", "two": "t"}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set seed: 'key=value' needed, as in methods.ties.trials=4"),
        ("=3", "--set =3: 'key=value' needed, as in methods.ties.trials=4"),
        ("a..b=3", "--set a..b=3: 'key=value' needed, as in methods.ties.trials=4"),
        ("name.x=3", "--set name.x=3: name is 's': not a mapping; set it whole"),
        (
            "methods.ties=[1",
            "--set methods.ties=[1: line 2, column 1: not YAML: did not find expected ',' or ']'",
        ),
    ],
)
def test_overrides_that_do_not_fit(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, yaml.safe_dump(plain())), [override])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "empty: a mapping of name, pool, methods, … needed"),
        ("[1, 2]", "[1, 2]: a mapping of name, pool, methods, … needed"),
        ("name: a\nname: b\n", "line 2: 'name': given twice; once allowed"),
        (
            "methods:\n  ties: {}\n  ties: {}\n",
            "line 3: 'ties': given twice; once allowed",
        ),
        ("name: a: b", "line 1, column 8: not YAML: mapping values are not allowed in this"
         " context"),
        ("x: !!python/name:os.system", "line 1, column 4: tag"
         " 'tag:yaml.org,2002:python/name:os.system': none allowed but those of plain values"
         " (!!str, !!int, …)"),
        ("x: 017", "line 1, column 4: 017: octal in YAML 1.1, decimal in YAML 1.2; a number without"
         " the leading 0, or a text in quotes, needed"),
    ],
)  # fmt: skip
def test_files_that_are_no_sweep_files(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {line}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, line in (
        (tmp_path / "no.yaml", "No such file or directory"),
        (tmp_path, "not a regular file"),
    ):
        with pytest.raises(InputError) as caught:
            load(path)
        assert str(caught.value) == f"{path}: {line}"
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: \xe9")
    with pytest.raises(InputError, match="not UTF-8: a text file needed"):
        load(path)
    looped = write(tmp_path, "name: s\nmethods: &m {ties: {scale: *m}}")
    with pytest.raises(InputError) as caught:
        load(looped)
    assert str(caught.value) == f"{looped}: an alias that holds itself: plain data needed"
