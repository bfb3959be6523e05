"""Sweep files: what loads, what is dumped, and what the hash covers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusion.errors import InputError
from fusion.registry import METHODS
from sweeps.spec.diff import changes
from sweeps.spec.errors import SpecErrors
from sweeps.spec.method import RESERVED, MethodSpec
from sweeps.spec.search_space import Choice, Grid, LogUniform, Uniform
from sweeps.spec.sweep import SweepSpec, dump, load, load_data, spec_hash, validate
from sweeps.tracking.run_fields import spec_params
from tests.sweeps.spec.sweep_file import plain, write

WHOLE = """
name: real8-methods
pool:
  base: openai/clip-vit-base-patch32
  experts: {mnist: path/to/mnist, fashion_mnist: path/to/fashion}
tasks:
  mnist: {dataset: mnist, image: image, label: label, templates: ["a photo of {}."]}
  fashion_mnist: {dataset: data/fashion, classnames: [shirt, "0"]}
splits: {fit: train, select: val, report: test, val_fraction: 0.1, seed: 0}
methods:
  task_arithmetic: {scale: {grid: [0.1, 0.2, 0.3, 0.4, 0.5]}}
  ties: {density: {choice: [0.1, 0.2]}, scale: {uniform: [0.2, 1.0]}, trials: 16}
  wise_ft: {alpha: {loguniform: [1e-3, 1]}, trials: 8, searcher: tpe, scheduler: null}
  weighted_average:
    weights: {mnist: {uniform: [0, 1]}, fashion_mnist: {uniform: [0, 1]}}
    trials: 12
    searcher: cmaes
  simple_average: {}
  ensemble:
metric: acc/mean
seed: 0
placement: auto
mlflow: {tracking_uri: null, experiment: null}
"""


def test_the_contract_file_loads(tmp_path: Path) -> None:
    spec = load(write(tmp_path, WHOLE))
    assert spec.methods["task_arithmetic"].params == {"scale": Grid((0.1, 0.2, 0.3, 0.4, 0.5))}
    assert spec.methods["ties"] == MethodSpec(
        params={"density": Choice((0.1, 0.2)), "scale": Uniform(0.2, 1.0)}, trials=16
    )
    assert spec.methods["wise_ft"].params["alpha"] == LogUniform(0.001, 1.0)
    assert spec.methods["weighted_average"].sampled == {
        ("weights", "fashion_mnist"): Uniform(0, 1),
        ("weights", "mnist"): Uniform(0, 1),
    }
    assert spec.methods["ensemble"] == MethodSpec()
    assert list(spec.methods) == list(yaml.safe_load(WHOLE)["methods"])
    assert spec.tasks["mnist"].templates == ("a photo of {}.",)
    assert (spec.mode, spec.placement.replicas, spec.placement.shards) == ("max", None, None)


def test_defaults() -> None:
    spec = validate(plain(), "f.yaml")
    assert {name: task.dataset for name, task in spec.tasks.items()} == {
        "mnist": "mnist",
        "svhn": "svhn",
    }
    assert (spec.splits.fit, spec.splits.select, spec.splits.report) == ("train", "val", "test")
    assert (spec.metric, spec.seed, spec.placement.dtype) == ("acc/mean", 0, "float32")


def test_a_dump_loads_back_equal(tmp_path: Path) -> None:
    for data in (yaml.safe_load(WHOLE.replace("1e-3", "0.001")), plain()):
        spec = validate(data, "f.yaml")
        again = load(write(tmp_path, dump(spec)))
        assert again == spec
        assert spec_hash(again) == spec_hash(spec)
        assert again.splits.select_spelled == spec.splits.select_spelled
        assert dump(again) == dump(spec)


def test_a_spec_can_be_built_in_python() -> None:
    spec = SweepSpec(**plain(methods={"ties": {"scale": Grid((1, 2))}, "wise_ft": MethodSpec()}))
    assert spec.methods["ties"].params == {"scale": Grid((1.0, 2.0))}
    assert validate(spec.model_dump(), "f.yaml") == spec


def test_integers_become_floats_where_floats_are_taken() -> None:
    spec = validate(plain(methods={"ties": {"density": 1, "scale": {"grid": [1, 2]}}}), "f")
    values = [spec.methods["ties"].params["density"], *spec.methods["ties"].grids["scale",].values]
    assert [type(value) for value in values] == [float] * 3


def test_selecting_on_the_reporting_split_is_allowed_when_spelled_out() -> None:
    for splits in ({"select": "test"}, {"select": "val", "report": "val"}):
        assert validate(plain(splits=splits), "f").splits.select_spelled
    assert not validate(plain(), "f").splits.select_spelled


METRICS = ("acc/mean", "acc/mnist", "acc/svhn", "nll/mean", "nll/mnist", "nll/svhn")


def test_the_mode_follows_the_metric() -> None:
    modes = {m: validate(plain(metric=m), "f").mode for m in METRICS}
    assert {m for m, mode in modes.items() if mode == "min"} == {
        "nll/mean",
        "nll/mnist",
        "nll/svhn",
    }


def test_no_parameter_has_the_name_of_a_reserved_key() -> None:
    for name, method in METHODS.items():
        assert not set(RESERVED) & set(method.parameters), name
    assert set(MethodSpec.model_fields) == {"params", *RESERVED}


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(inner) for key, inner in reversed(value.items())}
    return value


def test_the_hash_does_not_depend_on_what_does_not_matter() -> None:
    data = yaml.safe_load(WHOLE.replace("1e-3", "0.001"))
    known = spec_hash(validate(data, "f"))
    same: list[dict[str, Any]] = [
        reordered(data),
        data | {"name": "other"},
        data | {"mlflow": {"experiment": "x"}},
        data | {"placement": {"replicas": 2, "device": "cuda"}},
        data | {"placement": {"weights": "files"}},
        {key: value for key, value in data.items() if key not in ("seed", "splits", "metric")},
    ]
    assert {spec_hash(validate(each, "f")) for each in same} == {known}


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "metric=nll/mean",
        "splits.seed=1",
        "splits.val_fraction=0.2",
        "pool.base=other",
        "pool.experts.mnist=other",
        "tasks.mnist.templates=['{}']",
        "methods.ties.trials=17",
        "methods.ties.scale.uniform=[0.2, 1.1]",
        "methods.ties.searcher=tpe",
        "methods.ensemble.average=features",
        "placement={dtype: float16}",
    ],
)
def test_the_hash_depends_on_what_matters(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, WHOLE)
    assert spec_hash(load(path, [override])) != spec_hash(load(path))


def test_the_hash_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE)
    code = (
        "import sys; from sweeps.spec import candidates; from sweeps.cli import list_methods;"
        "from sweeps.spec.sweep import *;"
        f"print(spec_hash(load({str(path)!r})), 'ray' in sys.modules, 'mlflow' in sys.modules,"
        "'transformers' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [spec_hash(load(path)), "False", "False", "False"]


TEXTS = {
    "name": "texts",
    "pool": {"base": "base", "experts": {"a": "a", "b": "b"}},
    "methods": {"simple_average": {}},
}


def test_a_text_task_reads_back_and_leaves_image_tasks_as_they_are():
    words = {"dataset": "d", "text": ["x", "y"], "template": "{y} {x}", "targets": {"no": "n"}}
    spec = validate(
        {**TEXTS, "tasks": {"a": {**words, "metric": "f1"}, "b": {"dataset": "e"}}}, "s"
    )
    assert spec.tasks["a"].text == ("x", "y")
    assert spec.tasks["a"].targets == {"no": "n"}
    dumped = yaml.safe_load(dump(spec))["tasks"]
    assert dumped["a"]["template"] == "{y} {x}"
    assert set(dumped["b"]) == {"dataset", "image", "label", "templates", "classnames", "head"}
    assert validate(yaml.safe_load(dump(spec)), "s") == spec
    assert spec.metric == "score/mean"


def test_the_default_metric_follows_the_tasks():
    def metric(**tasks):
        return validate({**TEXTS, "tasks": tasks}, "s").metric

    assert metric(a={"dataset": "d"}, b={"dataset": "e", "metric": "acc"}) == "acc/mean"
    assert metric(a={"dataset": "nyu-mll/glue:stsb"}, b={"dataset": "e"}) == "score/mean"
    spec = {**TEXTS, "tasks": {"a": {"dataset": "d", "metric": "matthews"}, "b": {"dataset": "e"}}}
    assert validate({**spec, "metric": "matthews/a"}, "s").metric == "matthews/a"
    with pytest.raises(SpecErrors, match="f1/mean"):
        validate({**spec, "metric": "f1/mean"}, "s")


def test_exact_match_is_a_metric():
    def metric(name, **more):
        return validate({**TEXTS, "tasks": {"a": {"dataset": "d"}}, "metric": name, **more}, "s")

    assert metric("exact/mean").mode == metric("exact/a").mode == "max"
    with pytest.raises(SpecErrors, match=r"did you mean 'exact/a'"):
        metric("exact/b")


def test_an_unknown_metric_of_a_task():
    with pytest.raises(SpecErrors) as caught:
        validate({**TEXTS, "tasks": {"a": {"dataset": "d", "metric": "mathews"}}}, "s")
    (line,) = caught.value.lines
    assert "tasks.a.metric" in line
    assert "did you mean 'matthews'" in line


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"ties": "x"}, "references: {'ties': 'x'}: 'ties' is the name of a method; another name"),
        ({"experts": "x"}, "'experts' is the name of another row; another name needed"),
        ({"pretrained": "x"}, "references.pretrained: .*another name needed"),
        ({"a b": "x"}, "references.a b: .*a name of letters"),
        ({"mtl": ""}, "references.mtl: '': a hub id or a folder"),
        ({"mtl": 3}, "references.mtl: 3: a hub id or a folder"),
        (["x"], "references: .*a mapping of names to a hub id or a folder"),
    ],
)
def test_wrong_references(references, message):
    with pytest.raises(InputError, match=message) as refused:
        validate(plain(references=references), "s.yaml")
    assert "\n" not in str(refused.value)


def test_a_file_without_references_is_as_before():
    """Hash, copy and parameters do not name what the file does not have."""
    spec, named = validate(plain(), "s.yaml"), validate(plain(references={"mtl": "m"}), "s.yaml")
    assert not {"references", "platform"} & set(yaml.safe_load(dump(spec)))
    assert "platform" not in yaml.safe_load(dump(spec))["pool"]
    assert spec_hash(spec) == "7df0d33bf59fff19"
    assert not [k for k in spec_params(spec.model_dump(mode="json")) if "platform" in k]
    assert "references" not in spec_params(spec.model_dump(mode="json"))
    assert spec_hash(named) != spec_hash(spec)
    assert spec_params(named.model_dump(mode="json"))["references.mtl"] == "m"
    assert load_data(yaml.safe_load(dump(named)), "copy") == named
    assert [str(change) for change in changes(spec, named)] == ["references: added {'mtl': 'm'}"]
    assert all(change.extends for change in changes(spec, named))


def test_ids_of_modelscope(tmp_path):
    pool = {
        "platform": "modelscope",
        "base": "org/base@v1",
        "experts": {"mnist": "org/mnist", "svhn": str(tmp_path)},
    }
    spec = validate(plain(pool=pool, references={"mtl": "org/mtl"}), "s.yaml")
    assert spec.pool.base == "modelscope:org/base@v1"
    assert spec.pool.experts == {"mnist": "modelscope:org/mnist", "svhn": str(tmp_path)}
    assert spec.references == {"mtl": "modelscope:org/mtl"}
    assert validate(yaml.safe_load(dump(spec)), "copy") == spec
    with pytest.raises(InputError, match=r"pool\.platform: 'hub': huggingface or modelscope"):
        validate(plain(pool={**pool, "platform": "hub"}), "s.yaml")


@pytest.mark.parametrize("evaluate", ["racing", {"racing": {"confidence": 0.99}}])
def test_racing_is_part_of_the_hash(evaluate: Any) -> None:
    """Rows are cut into other batches, so one sweep cannot have both."""
    spec, raced = validate(plain(), "f"), validate(plain(evaluate=evaluate), "f")
    assert "evaluate" not in dump(spec)
    assert spec_hash(validate(plain(evaluate="all"), "f")) == spec_hash(spec) != spec_hash(raced)
    again = load_data(yaml.safe_load(dump(raced)), "f")
    assert (again, again.racing) == (raced, raced.racing)
    assert [change.field for change in changes(spec, raced)][:1] == ["evaluate"]
    assert not changes(spec, raced)[0].extends
