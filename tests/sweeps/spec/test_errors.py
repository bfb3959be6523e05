"""Every fault of a sweep file is one line: the file, the field, the value, what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fusion.registry import METHODS
from sweeps.spec.errors import SpecErrors, shown
from sweeps.spec.fields import EVALUATE
from sweeps.spec.method import RESERVED
from sweeps.spec.sweep import validate
from tests.sweeps.spec.sweep_file import plain


def lines(data: Any) -> tuple[str, ...]:
    with pytest.raises(SpecErrors) as caught:
        validate(data, "f.yaml")
    assert str(caught.value) == "\n".join(caught.value.lines)
    return caught.value.lines


NAME = "a name of letters, digits, '.', '_' and '-' that starts with none of '.' and '-' allowed"
TAKEN = (
    "another name needed: mean, seen, unseen, pretrained, grid, choice, uniform, loguniform are"
    " taken"
)
METRICS = "acc/mean, acc/mnist, acc/svhn, nll/mean, nll/mnist, nll/svhn"
VALID = ", ".join(sorted(METHODS))
TIES = ", ".join(sorted((*METHODS["ties"].parameters, *RESERVED)))
SAMPLED = "an integer of at least 1 needed, since a choice or uniform space is sampled"


def pool(**changes: Any) -> dict[str, Any]:
    return {"pool": {"base": "b", "experts": {"mnist": "m"}} | changes}


def tasks(**changes: Any) -> dict[str, Any]:
    return {"tasks": {"mnist": {"dataset": "d"} | changes}}


def ties(**entry: Any) -> dict[str, Any]:
    return {"methods": {"ties": entry}}


FAULTS: list[tuple[dict[str, Any], str]] = [
    # names
    ({"name": "../x"}, f"name: '../x': {NAME}"),
    ({"name": ".."}, f"name: '..': {NAME}"),
    ({"name": ""}, f"name: '': {NAME}"),
    ({"name": "a/b"}, f"name: 'a/b': {NAME}"),
    ({"name": "a\nb"}, f"name: 'a\\nb': {NAME}"),
    ({"name": 2024}, f"name: 2024: {NAME}; put it in quotes"),
    ({"name": None}, f"name: None: {NAME}"),
    (
        {"nmae": "x"},
        "nmae: 'x': unknown field 'nmae'; did you mean 'name'? (valid: adapt_on_shift,"
        " batch_norm, evaluate, methods, metric, mlflow,"
        " name, placement, pool, references, seed, shifts, splits, tasks)",
    ),
    # pool
    ({"pool": "b"}, "pool: 'b': a mapping of base and experts allowed"),
    (pool(base=3), "pool.base: 3: a hub id or a folder allowed; put it in quotes"),
    (pool(base=""), "pool.base: '': a hub id or a folder allowed"),
    (pool(base=None), "pool.base: None: a hub id or a folder allowed"),
    (
        {"pool": {"experts": {"mnist": "m"}}},
        "pool.base: not given: a hub id or a folder needed",
    ),
    (
        pool(experts={}),
        "pool.experts: {}: a mapping of at least one name to a hub id or a folder allowed",
    ),
    (pool(experts={"a b": "x"}), f"pool.experts.a b: 'a b': {NAME}"),
    (pool(experts={"mean": "x"}), f"pool.experts.mean: 'mean': {TAKEN}"),
    (pool(experts={"grid": "x"}), f"pool.experts.grid: 'grid': {TAKEN}"),
    (pool(experts={1: "x"}), "pool.experts.1: 1: a name must be a text; put it in quotes"),
    (
        pool(experts={False: "x"}),  # `no: x`
        "pool.experts.False: False: a name must be a text; YAML reads no, off and false as a truth"
        " value: put it in quotes, as in 'no'",
    ),
    (pool(experts={"a": None}), "pool.experts.a: None: a hub id or a folder allowed"),
    (
        pool(expert={}),
        "pool.expert: {}: unknown field 'expert'; did you mean 'experts'?"
        " (valid: base, experts, platform, preprocessing)",
    ),
    # tasks
    ({"tasks": {}}, "tasks: {}: a mapping of at least one name to {dataset: …} allowed"),
    (
        {"tasks": ["mnist"]},
        "tasks: ['mnist']: a mapping of at least one name to {dataset: …} allowed",
    ),
    ({"tasks": {"a/b": {"dataset": "d"}}}, f"tasks.a/b: 'a/b': {NAME}"),
    ({"tasks": {"mean": {"dataset": "d"}}}, f"tasks.mean: 'mean': {TAKEN}"),
    (
        {"tasks": {"mnist": None}},
        "tasks.mnist: None: a mapping of dataset, image, label, templates, classnames, head,"
        " text, template, targets, metric, objective allowed",
    ),
    ({"tasks": {"mnist": {}}}, "tasks.mnist.dataset: not given: a hub id or a folder needed"),
    (
        tasks(clasnames=["a"]),
        "tasks.mnist.clasnames: ['a']: unknown field 'clasnames'; did you mean 'classnames'?"
        " (valid: classnames, dataset, head, image, label, metric, objective, targets, template,"
        " templates, text)",
    ),
    (
        tasks(image=1),
        "tasks.mnist.image: 1: the name of the image column allowed; put it in quotes",
    ),
    (
        tasks(templates="a {}"),
        "tasks.mnist.templates: 'a {}': a list of texts with {} where the class name goes allowed",
    ),
    (
        tasks(templates=["a {}", "a photo"]),
        "tasks.mnist.templates.1: 'a photo': a text with {} where the class name goes",
    ),
    (
        tasks(classnames=["yes", True]),
        "tasks.mnist.classnames.1: True: a list of texts, one for each label allowed;"
        " YAML reads yes, on and true as a truth value: put it in quotes, as in 'yes'",
    ),
    *(
        (
            tasks(targets=given),
            f"tasks.mnist.targets: {shown}: a list of answers by label, a mapping of class names to"
            " answers, or null (the class names) allowed; an answer that is a number, yes or no"
            " needs quotes",
        )
        for given, shown in (
            ([1, 2], "[1, 2]"),
            ("red", "'red'"),
            (["a", None], "['a', None]"),
            ({"a": True}, "{'a': True}"),
        )
    ),
    (
        tasks(classnames=[]),
        "tasks.mnist.classnames: []: a list of texts, one for each label allowed",
    ),
    # splits
    (
        {"splits": {"report": "val"}},
        "splits.report: 'val': selecting on it needs 'select: val' spelled out",
    ),
    ({"splits": {"fit": ""}}, "splits.fit: '': the name of a split allowed"),
    (
        {"splits": {"val_fraction": 1}},
        "splits.val_fraction: 1: a number between 0 and 1, both excluded, allowed",
    ),
    (
        {"splits": {"val_fraction": "0.1"}},
        "splits.val_fraction: '0.1': a number between 0 and 1, both excluded, allowed",
    ),
    ({"splits": {"seed": -1}}, "splits.seed: -1: an integer of at least 0 allowed"),
    (
        {"splits": {"val_frac": "x"}},
        "splits.val_frac: 'x': unknown field 'val_frac'; did you mean 'val_fraction'?"
        " (valid: fit, report, seed, select, val_fraction)",
    ),
    # metric and seed
    (
        {"metric": "acc/mnits"},
        "metric: 'acc/mnits': unknown metric 'acc/mnits'; did you mean 'acc/mnist'?"
        f" (valid: {METRICS})",
    ),
    (
        {"metric": "mean"},
        f"metric: 'mean': unknown metric 'mean'; did you mean 'nll/mean'? (valid: {METRICS})",
    ),
    ({"seed": -1}, "seed: -1: an integer of at least 0 allowed"),
    ({"seed": True}, "seed: True: an integer of at least 0 allowed"),
    ({"seed": 0.5}, "seed: 0.5: an integer of at least 0 allowed"),
    ({"seed": "7"}, "seed: '7': an integer of at least 0 allowed"),
    # placement and mlflow
    (
        {"placement": "gpu"},
        "placement: 'gpu': auto, or a mapping of replicas, shards, gpus, labels, transport,"
        " weights, dtype, delta_dtype, result_dtype, precision, report_precision and device,"
        " allowed",
    ),
    (
        {"placement": {"shards": 0}},
        "placement.shards: 0: an integer of at least 1, or null (as few as fit), allowed",
    ),
    (
        {"placement": {"weights": "disk"}},
        "placement.weights: 'disk': memory (task vectors are loaded once), files (they stay in"
        " the experts' files, and are made a tensor at a time) or factored (of experts that are"
        " all adapters, their low-rank factors are loaded), allowed",
    ),
    (
        {"placement": {"precision": "fp16"}},
        "placement.precision: 'fp16': no fp16: activations overflow in it, and on CPUs its products"
        " are slower than fp32's; fp32, tf32 or bf16 allowed",
    ),
    (
        {"placement": {"delta_dtype": "float16"}},
        "placement.delta_dtype: 'float16': float32 or bfloat16 allowed; did you mean 'bfloat16'?",
    ),
    (
        {"placement": {"delta_dtype": "bfloat16", "weights": "files"}},
        "placement.delta_dtype: 'bfloat16': task vectors are not held with weights: files; float32"
        " allowed",
    ),
    (
        {"placement": {"report_precision": "fp8"}},
        "placement.report_precision: 'fp8': fp32, tf32 (GPUs) or bf16 allowed; did you"
        " mean 'fp32'?",
    ),
    (
        {"placement": {"dtype": "bfloat16", "precision": "tf32"}},
        "placement.precision: 'tf32': models in bfloat16 are multiplied in bfloat16: fp32 allowed",
    ),
    (
        {"placement": {"gpus": 2}},
        "placement.gpus: 2: a fraction of a GPU for each shard, auto, or null (a whole one),"
        " allowed",
    ),
    (
        {"placement": {"replicas": 0}},
        "placement.replicas: 0: an integer of at least 1, or null (as many as fit), allowed",
    ),
    (
        {"placement": {"dtype": "flaot16"}},
        "placement.dtype: 'flaot16': float32, float16, bfloat16 or float64 allowed;"
        " did you mean 'float16'?",
    ),
    ({"placement": {"device": "tpu"}}, "placement.device: 'tpu': auto, cpu or cuda allowed;"
     " did you mean 'cpu'?"),
    (
        {"mlflow": {"uri": "x"}},
        "mlflow.uri: 'x': unknown field 'uri'; (valid: experiment, max_model_mb, tracking_uri)",
    ),
    ({"mlflow": {"max_model_mb": -1}}, "mlflow.max_model_mb: -1: a number of megabytes, at least 0,"
     " allowed"),
    ({"mlflow": {"experiment": 3}}, "mlflow.experiment: 3: a name, or null (the default),"
     " allowed; put it in quotes"),
    # methods
    ({"methods": {}}, "methods: {}: a mapping of at least one method to its parameters needed"),
    (
        {"methods": ["ties"]},
        "methods: ['ties']: a mapping of at least one method to its parameters needed",
    ),
    (
        {"methods": {"tys": {}}},
        f"methods.tys: 'tys': unknown method 'tys'; did you mean 'ties'? (valid: {VALID})",
    ),
    ({"methods": {1: {}}}, f"methods.1: 1: unknown method '1'; (valid: {VALID})"),
    ({"methods": {"ties": 3}}, "methods.ties: 3: a mapping of parameters, or {}, allowed"),
    (
        ties(scal=1),
        f"methods.ties.scal: 1: unknown parameter 'scal'; did you mean 'scale'? (valid: {TIES})",
    ),
    (
        ties(trails=1),
        "methods.ties.trails: 1: unknown parameter 'trails'; did you mean 'trials'?"
        f" (valid: {TIES})",
    ),
    (ties(density=1.5), "methods.ties.density: 1.5: float in [0, 1] allowed"),
    (ties(density="x"), "methods.ties.density: 'x': float in [0, 1] allowed"),
    (ties(density=True), "methods.ties.density: True: float in [0, 1] allowed"),
    (ties(density=None), "methods.ties.density: None: float in [0, 1] allowed"),
    (ties(density=float("nan")), "methods.ties.density: nan: a finite number"),
    (
        ties(density=[0.1, 0.2]),
        "methods.ties.density: [0.1, 0.2]: float in [0, 1] allowed;"
        " to try each: {grid: [0.1, 0.2]}",
    ),
    (ties(merge="men"), "methods.ties.merge: 'men': one of 'mean', 'sum', 'max' allowed"),
    (
        ties(density={"grid": [0.1, 2]}),
        "methods.ties.density.grid.1: 2: float in [0, 1] allowed",
    ),
    (
        ties(density={"choice": [0.1, 2]}, trials=1),
        "methods.ties.density.choice.1: 2: float in [0, 1] allowed",
    ),
    (
        ties(density={"uniform": [0.5, 1.5]}, trials=1),
        "methods.ties.density.uniform.1: 1.5: float in [0, 1] allowed",
    ),
    (
        ties(density={"uniform": [-0.5, 0.5]}, trials=1),
        "methods.ties.density.uniform.0: -0.5: float in [0, 1] allowed",
    ),
    (
        ties(density={"loguniform": [0.5, 1.5]}, trials=1),
        "methods.ties.density.loguniform.1: 1.5: float in [0, 1] allowed",
    ),
    (
        ties(scale={"uniform": [2, 1]}, trials=1),
        "methods.ties.scale: {'uniform': [2.0, 1.0]}: uniform: [low, high] with low below high",
    ),
    (
        ties(scale={"loguniform": [0, 1]}, trials=1),
        "methods.ties.scale: {'loguniform': [0.0, 1.0]}: loguniform: both ends above 0",
    ),
    (
        ties(scale={"uniform": [1]}, trials=1),
        "methods.ties.scale: {'uniform': [1]}: uniform: [low, high], two finite numbers",
    ),
    (
        ties(scale={"uniform": [1, float("inf")]}, trials=1),
        "methods.ties.scale: {'uniform': [1, inf]}: uniform: [low, high], two finite numbers",
    ),
    (ties(scale={"grid": 3}), "methods.ties.scale: {'grid': 3}: grid: a list"),
    (ties(scale={"grid": []}), "methods.ties.scale: {'grid': []}: grid: at least one value"),
    (
        ties(scale={"grid": [1], "step": 2}),
        "methods.ties.scale: {'grid': [1], 'step': 2}: a space is a mapping with 'grid' alone",
    ),
    (
        ties(scale={"grid": [{"uniform": [0, 1]}]}),
        "methods.ties.scale.grid.0: {'uniform': [0.0, 1.0]}: grid: values, not spaces inside a"
        " space",
    ),
    (
        ties(scale={"grdi": [1]}),
        "methods.ties.scale: {'grdi': [1]}: unknown space 'grdi'; did you mean 'grid'?",
    ),
    (ties(density={"a": [1]}), "methods.ties.density: {'a': [1]}: float in [0, 1] allowed"),
    (
        ties(merge={"uniform": [0, 1]}, trials=1),
        "methods.ties.merge: {'uniform': [0.0, 1.0]}: one of 'mean', 'sum', 'max' needed:"
        " use grid or choice",
    ),
    (
        ties(scale=yaml.safe_load("2024-01-01")),
        "methods.ties.scale: datetime.date(2024, 1, 1): a number, a text, true, false, null,"
        " a list or a mapping",
    ),
    (
        {"methods": {"weighted_average": {"weights": {"a": {"uniform": [1, 0]}}, "trials": 1}}},
        "methods.weighted_average.weights.a: {'uniform': [1.0, 0.0]}: uniform: [low, high] with"
        " low below high",
    ),
    (
        {"methods": {"weighted_average": {"weights": {1: 0.5}}}},
        "methods.weighted_average.weights.1: 1: a name must be a text; put it in quotes",
    ),
    # trials, searcher, scheduler
    (
        ties(scale={"uniform": [0, 1]}),
        f"methods.ties.trials: not given: {SAMPLED}",
    ),
    (ties(scale={"choice": [0, 1]}), f"methods.ties.trials: not given: {SAMPLED}"),
    (
        ties(scale={"grid": [0, 1]}, trials=2),
        "methods.ties.trials: 2: nothing is sampled, grids are tried whole; leave it out",
    ),
    (
        ties(trials=2),
        "methods.ties.trials: 2: nothing is sampled, grids are tried whole; leave it out",
    ),
    (
        ties(scale={"uniform": [0, 1]}, trials=0),
        "methods.ties.trials: 0: an integer of at least 1 allowed",
    ),
    (
        ties(scale={"uniform": [0, 1]}, trials=True),
        "methods.ties.trials: True: an integer of at least 1 allowed",
    ),
    (
        ties(scale={"uniform": [0, 1]}, trials="4"),
        "methods.ties.trials: '4': an integer of at least 1 allowed",
    ),
    (
        ties(scale={"uniform": [0, 1]}, trials=2, searcher="tpee"),
        "methods.ties.searcher: 'tpee': unknown searcher 'tpee'; did you mean 'tpe'?"
        " (valid: cmaes, random, tpe)",
    ),
    (
        ties(searcher="tpe"),
        "methods.ties.searcher: 'tpe': nothing is sampled; leave it out",
    ),
    (
        ties(scale={"uniform": [0, 1]}, trials=2, searcher="cmaes"),
        "methods.ties.searcher: 'cmaes': at least two uniform or loguniform spaces and no choice"
        " needed, or tpe",
    ),
    (
        ties(scheduler="asha"),
        "methods.ties.scheduler: 'asha': stops trials by results on the way, and ties reports"
        " once; null allowed",
    ),
    (
        ties(scheduler="hyperband"),
        "methods.ties.scheduler: 'hyperband': null or 'asha' allowed",
    ),
    ({"evaluate": "race"}, f"evaluate: 'race': {EVALUATE} allowed"),
    (
        {"evaluate": {"racing": {"sure": 1}}},
        "evaluate: {'racing': {'sure': 1}}: {racing: {confidence: …}} allowed",
    ),
    (
        {"evaluate": {"racing": {"confidence": 1}}},
        "evaluate: {'racing': {'confidence': 1}}: a confidence from 0.5 to 1, 1 excluded, allowed",
    ),
    (
        {"evaluate": "racing", "metric": "nll/mean"},
        "evaluate: 'racing': bounds are those of accuracies, and the metric is nll/mean: all"
        " allowed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line"), FAULTS, ids=[line for _, line in FAULTS])
def test_each_fault_is_one_clear_line(changes: dict[str, Any], line: str) -> None:
    assert lines(plain(**changes)) == (f"f.yaml: {line}",)


def test_what_is_missing() -> None:
    assert lines({}) == (
        f"f.yaml: name: not given: {NAME.removesuffix('allowed')}needed",
        "f.yaml: pool: not given: a mapping of base and experts needed",
        "f.yaml: methods: not given: a mapping of at least one method to its parameters needed",
    )


def test_all_faults_are_told_at_once() -> None:
    data = plain(
        name="/",
        metric="acc",
        seed=-1,
        tasks={"a": {"data": "x"}},
        methods={"tys": {}, "ties": {"density": 2, "scale": {"uniform": [0, 1]}, "trials": -1}},
    )
    fields = [line.split(": ")[1] for line in lines(data)]
    assert fields == [
        "name", "tasks.a.dataset", "tasks.a.data", "methods.tys", "methods.ties.density",
        "methods.ties.trials", "seed",
    ]  # fmt: skip


def test_a_broken_parameter_says_nothing_of_trials() -> None:
    data = plain(**ties(density={"uniform": [2, 1]}, trials=4, searcher="tpe"))
    assert [line.split(": ")[1] for line in lines(data)] == ["methods.ties.density"]


def test_long_values_are_cut_to_one_line() -> None:
    text = shown({"grid": ["a\nb"] * 100})
    assert len(text) <= 90
    assert "\n" not in text
    assert " … " in text
