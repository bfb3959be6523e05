"""The laws of `fusion.testing`, with hyper-parameters to try this package's methods with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusion.registry import (
    METHODS,
    Adaptive,
    Fitted,
    InModel,
    LogitSpace,
    Routed,
    Selected,
    Static,
)
from fusion.testing import EXAMPLES as EXAMPLES
from fusion.testing import LAWS as LAWS
from fusion.testing import LOGIT_LAWS as LOGIT_LAWS
from fusion.testing import SCHEMAS as SCHEMAS
from fusion.testing import TASKS as TASKS
from fusion.testing import Fuse as Fuse
from fusion.testing import Merge as Merge
from fusion.testing import a_row_says_where_it_comes_from as a_row_says_where_it_comes_from
from fusion.testing import assert_same_bits as assert_same_bits
from fusion.testing import copied as copied
from fusion.testing import examples as examples
from fusion.testing import fuse as fuse
from fusion.testing import merge as merge
from fusion.testing import merge_shards as merge_shards
from fusion.testing import split as split
from fusion.testing import state_dict as state_dict
from fusion.testing import statistics as statistics
from fusion.testing import tied as tied
from fusion.testing import toy as toy
from fusion.testing import toy_embeddings as toy_embeddings
from fusion.testing import toy_statistics as toy_statistics


def by_name(task: str, tensor: str) -> float:
    """Some weight that depends on the two names only, whatever their order."""
    return 0.5 + sum(map(ord, task + tensor)) % 11 / 10


CURVE = {"start": 0.2, "end": 0.6}


def a_task(tasks: Sequence[str]) -> dict[str, float]:
    """A scale of each task, by its name."""
    return {task: by_name(task, "λ") - 0.7 for task in tasks}


def a_task_and_layer(tasks: Sequence[str]) -> dict[str, Any]:
    """A scale of each task: a curve for the first by name, and numbers."""
    return {**a_task(tasks), min(tasks): CURVE}


EXAMPLES.update(
    {
        "fisher": lambda tasks, groups: [{}, {"normalize": False, "floor": 0.0}],
        "regmean": lambda tasks, groups: [{}, {"non_diagonal": 0.5, "ridge": 0.1}],
        "lot": lambda tasks, groups: [{}, {"rtol": 0.1}],
        "weighted_average": lambda tasks, groups: [
            {},
            {"weights": {task: by_name(task, "") for task in tasks}},
            {"weights": {task: {"block.*": by_name(task, "b"), "*": 1.0} for task in tasks}},
            {"weights": [[by_name(task, name) for name in groups] for task in tasks]},
        ],
        "task_arithmetic": lambda tasks, groups: [
            {},
            {"scale": -0.5},
            {"scale": a_task(tasks)},
            {"scale": CURVE, "weights": {task: by_name(task, "") for task in tasks}},
            {"scale": {"preset": "lines", "beta": 0.5}},
            {"scale": a_task_and_layer(tasks)},
        ],
        "ties": lambda tasks, groups: [
            {},
            {"density": 0.6, "granularity": "tensor", "merge": "sum"},
            {"density": 0.5, "scale": 0.3, "merge": "sum", "compat": "fusionbench"},
            {"density": 1.0, "merge": "max"},
            {"density": 0.7, "scale": a_task_and_layer(tasks)},
            {
                "density": 0.7,
                "scale": CURVE,
                "weights": {task: {"block.*": by_name(task, "b"), "*": 1.0} for task in tasks},
            },
        ],
        "magmax": lambda tasks, groups: [
            {},
            {"scale": -0.5},
            {"scale": a_task(tasks)},
            {"scale": CURVE},
        ],
        "breadcrumbs": lambda tasks, groups: [
            {},
            {"density": 0.5, "gamma": 0.1, "scale": 1.0},
            {"density": 0.5, "gamma": 0.2, "granularity": "row"},
            {"density": 0.0},
            {"density": 1.0, "gamma": 0.0},
            {"density": 0.5, "scale": a_task(tasks), "weights": dict.fromkeys(tasks, 0.5)},
        ],
        "slerp": lambda tasks, groups: [
            {"experts": sorted(tasks)[:2], "t": 0.3},
            {"experts": sorted(tasks)[-1:], "t": 0.7, "compat": "fusionbench"},
        ],
        "model_stock": lambda tasks, groups: [
            {},
            {"compat": "released"},
            {"filter_wise": True},
            {"filter_wise": True, "compat": "mergekit"},
        ],
        "breadcrumbs_ties": lambda tasks, groups: [
            {},
            {"density": 0.5, "gamma": 0.1, "merge": "mean"},
            {"density": 0.5, "gamma": 0.2, "granularity": "row", "compat": "released"},
        ],
        "della": lambda tasks, groups: [
            {},
            {"density": 0.4, "epsilon": 0.6, "seed": 3},
            {"density": 0.3, "compat": "mergekit"},
            {"density": 0.6, "rescale": False, "compat": "released"},
            {"density": 0.0},
        ],
        "della_linear": lambda tasks, groups: [
            {},
            {"density": 0.3, "epsilon": 0.2, "scale": 1.0, "compat": "mergekit"},
            {"density": 1.0},
        ],
        "sce": lambda tasks, groups: [
            {"density": 0.4},
            {"density": 0.5, "scale": -0.5, "compat": "released"},
            {"density": 0.3, "compat": "mergekit"},
            {"density": 1.0},
        ],
        "ram": lambda tasks, groups: [
            {"epsilon": 0.7},
            {"plus": True, "epsilon": 1.0, "r": 0.5},
            {"plus": True, "epsilon": 1.0, "granularity": "tensor", "alpha": 2.0},
        ],
        "arcee_fusion": lambda tasks, groups: [
            {"expert": sorted(tasks)[-1], "spread": 0.2},
            {"expert": sorted(tasks)[0]},
        ],
        "nuslerp": lambda tasks, groups: [
            {"experts": sorted(tasks)[:1], "t": 0.7},
            {"experts": sorted(tasks)[-1:], "t": 0.3, "granularity": "row"},
            {"experts": sorted(tasks)[:1], "granularity": "column"},
        ],
        "karcher": lambda tasks, groups: [
            {},
            {"of": "task_vectors", "iterations": 3},
            {"weights": {task: by_name(task, "") for task in tasks}},
        ],
        "multislerp": lambda tasks, groups: [
            {},
            {"of": "task_vectors"},
            {"weights": {task: by_name(task, "") for task in tasks}},
        ],
        "nearswap": lambda tasks, groups: [
            {"expert": sorted(tasks)[-1]},
            {"expert": sorted(tasks)[0], "t": 0.3},
        ],
        "dare": lambda tasks, groups: [
            {},
            {"density": 0.3, "merge": "average", "seed": 3},
            {"density": 0.7, "merge": "ties", "trim_density": 0.5},
            {"density": 0.0},
            {"density": 1.0},
            {"only_matrices": True, "rescale": False},
            {"merge": "ties", "scale": a_task_and_layer(tasks)},
            {"merge": "average", "weights": {task: by_name(task, "") for task in tasks}},
        ],
        "tsv_m": lambda tasks, groups: [
            {},
            {"scale": 0.5},
            {"compat": "fusionbench"},
            {"scale": a_task(tasks), "weights": dict.fromkeys(tasks, 0.5)},
            {"scale": CURVE},
        ],
        "iso_c": lambda tasks, groups: [{}, {"scale": 1.5}, {"scale": a_task(tasks)}],
        "iso_cts": lambda tasks, groups: [
            {},
            {"common_fraction": 0.5},
            {"scale": a_task_and_layer(tasks)},
        ],
        "wudi": lambda tasks, groups: [{"steps": 20}, {"steps": 3, "learning_rate": 1e-3}],
        "optmerge": lambda tasks, groups: [
            {"steps": 10},
            {"experts": "lora", "steps": 10, "learning_rate": 1e-2},
        ],
        "doge_ta": lambda tasks, groups: [
            {"steps": 10, "subspace": 3},
            {"scale": 0.5, "density": 0.6, "steps": 2, "compat": "released"},
        ],
        "trust_region": lambda tasks, groups: [{}, {"scale": -0.5, "density": 0.6}],
        "knots": lambda tasks, groups: [{}, {"of": {"task_arithmetic": {"scale": -0.5}}}],
        "core_space": lambda tasks, groups: [{}, {"of": {"ties": {"density": 0.5}}}],
        "svc": lambda tasks, groups: [
            {},
            {"of": {"ties": {"density": 0.5, "scale": 0.7}}, "alpha": 0.5},
            {"of": "tsv_m", "alpha": 1.0},
        ],
        "consensus": lambda tasks, groups: [
            {},
            {"threshold": 0.0, "least": 1, "scale": 1.0},
            {"threshold": 0.6, "compat": "released"},
        ],
        "emr": lambda tasks, groups: [
            {"task": sorted(tasks)[0]},
            {"task": sorted(tasks)[-1], "compat": "released"},
        ],
        "tall_mask": lambda tasks, groups: [
            {"task": sorted(tasks)[-1], "threshold": 0.6},
            {"task": sorted(tasks)[0], "compat": "released"},
        ],
        "wise_ft": lambda tasks, groups: [{"expert": sorted(tasks)[-1], "alpha": 0.3}],
    }
)
"""Hyper-parameters to try this package's methods with."""

STATIC = sorted(name for name, method in METHODS.items() if isinstance(method, Static))
LOGIT = sorted(name for name, method in METHODS.items() if isinstance(method, LogitSpace))
LEARNING = sorted(name for name, method in METHODS.items() if isinstance(method, Adaptive))
FITTED = sorted(name for name, method in METHODS.items() if isinstance(method, Fitted))
IN_MODEL = sorted(name for name, method in METHODS.items() if isinstance(method, InModel))
SELECTED = sorted(name for name, method in METHODS.items() if isinstance(method, Selected))
ROUTED = sorted(name for name, method in METHODS.items() if isinstance(method, Routed))
