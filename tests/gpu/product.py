"""The product: what a GPU merges is what a CPU rebuilds; a sweep, its exports, a training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

import sweeps
from actors.artifacts.recipe import BASE, Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.recipe import rebuilt
from actors.pool.pool import open_pool
from fusion.registry import METHODS, InModel
from sweeps.results.export.from_recipe import export
from tests.gpu.cases import NAMES, plan_and_batches, taught_recipe
from tests.gpu.families import World
from tests.gpu.methods import Replicas
from tests.gpu.places import Place, distance, flat
from tests.gpu.report import CHECKED, Found, Part, Row, within

SITE = Path(__file__).parents[1] / "pretend" / "site"
"""On `PYTHONPATH`: every Python process has a pretended GPU."""

METHODS_SWEPT: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": {"grid": [0.2, 0.4]}},
    "ties": {"density": 0.3},
    "fisher": {"examples": 8},
    "regmean": {"examples": 8},
    "adamerging": {"steps": 6, "batch_size": 8},
    "wemoe": {"steps": 4, "batch_size": 4},
    "concrete_task_arithmetic": {"steps": 4, "batch_size": 4},
}
"""Of the sweep."""

PATIENCE = {"cuda": 120, "pretend": 1500, "cpu": 1500}
"""Most seconds of a command."""


@dataclass
class Product:
    """A folder in which commands run."""

    place: Place
    pool: Callable[[], Path]
    root: Path

    @property
    def cache(self) -> Path:
        """Cache folder of the commands."""
        return self.root / "cache"

    def command(self, *words: str) -> None:
        """Run `sweeps …` there.

        Raises:
            RuntimeError: it fails; the end of what it says.
        """
        here = Path(__file__).parents[2]
        path = [str(here), *([str(SITE)] if self.place.kind == "pretend" else [])]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path[::-1]),
            "FUSION_SWEEPS_CACHE": str(self.cache),
        }
        done = subprocess.run(
            [sys.executable, "-m", "sweeps", *words],
            cwd=self.root, env=env, capture_output=True, text=True, check=False,
            timeout=PATIENCE[self.place.kind],
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-250:]}")

    def file(self, name: str, content: dict[str, Any]) -> str:
        """A YAML file there."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)

    def placement(self, **shared: Any) -> dict[str, Any]:
        """On this device."""
        given = {"device": self.place.device, **shared}
        return given if self.place.device == "cuda" else {**given, "gpus": None}

    def sweep(self, name: str, methods: dict[str, Any], **shared: Any) -> Found:
        """Run a sweep over the tiny pool."""
        pool = self.pool()
        spec = {
            "name": name,
            "pool": {
                "base": str(pool / "base"),
                "experts": {task: str(pool / "experts" / task) for task in NAMES},
            },
            "tasks": {task: {"dataset": str(pool / "data" / task)} for task in NAMES},
            "methods": methods,
            "placement": self.placement(**shared),
        }
        self.command("run", self.file(name, spec))
        rows = sweeps.load(self.root / "outputs" / name).comparison.rows
        there = {row.method for row in rows if row.test}
        missing = sorted(set(methods) - there)
        return Found((f"{len(there)} rows", "all", ", ".join(missing)), not missing)

    @cached_property
    def swept(self) -> sweeps.Results:
        """Results of the sweep of all methods."""
        return sweeps.load(self.root / "outputs" / "product")

    def exported(self, method: str) -> Found:
        """A row's export, made and evaluated on the CPU, against the row's own accuracy."""
        row, out = self.swept.row(method), self.root / "exported" / method
        assert row.recipe is not None
        with mock.patch.dict(os.environ, FUSION_SWEEPS_CACHE=str(self.cache)):  # has statistics
            export(self.swept.folder / row.recipe, out)
        pool, tiny = self.pool(), open_pool
        found = tiny(str(out), {task: str(pool / "experts" / task) for task in NAMES})
        tasks = {task: open_task(TaskSource(task, str(pool / "data" / task))) for task in NAMES}
        cache = self.root / "evaluated" / method
        data = prepare_data(found.base, tasks, Splits(), ["report"], cache)
        local = local_experts(found, data, EmbeddingCache(cache, {}))
        measured = local.evaluate(Recipe(BASE), "report").metrics()
        off = max(abs(measured[f"acc/{task}"] - row.test[f"acc/{task}"]) for task in NAMES)
        return within(off, 0.02, "largest difference of a task's accuracy")

    def trained(self) -> Found:
        """Fine-tune one expert from a base that is pretrained first."""
        out = self.root / "trained"
        spec = {
            "name": "training",
            "out": str(out),
            "pretrain": {
                "width": 32, "layers": 1, "heads": 2, "mlp": 32, "patch": 16, "text_width": 32,
                "text_layers": 1, "projection": 16, "steps": 4,
            },
            "tasks": {"tones": {"dataset": str(self.pool() / "data" / "tones")}},
            "finetune": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
        }  # fmt: skip
        self.command("train", self.file("training", spec))
        there = (out / "experts" / "tones" / "model.safetensors").exists()
        return Found(("an expert" if there else "no expert", "an expert"), there)


def same(replicas: Replicas, name: str, params: dict[str, Any]) -> Found:
    """A model merged there, against the one that a CPU rebuilds from its recipe."""
    host, row = replicas.host, METHODS[name]
    recipe = Recipe(name, params)
    if isinstance(row, InModel):
        from actors.artifacts.in_model_state_file import learned_of
        from actors.experts.in_model_training import plan_of

        given = Recipe(name, {"batch_size": 4, **params})
        state, _ = replicas.there().train(given, None, 0, 3, 5)
        plan = plan_of(given, NAMES, host.runner.pipeline.groups)
        steps = getattr(plan.options, "mask_steps", 0)
        recipe = Recipe(name, given.params, learned_of(state, name, NAMES, steps))
    elif row.learned == "coding":
        recipe = taught_recipe(name, params, host, plan_and_batches(name, params, host))
    found, wanted = replicas.there().merge(recipe), rebuilt(replicas.world.pool, recipe)
    return within(distance(flat(found), flat(wanted)), 1e-5, "relative L2 of the weights")


MADE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("task_arithmetic", {"scale": 0.4}), ("ties", {}), ("dare", {}), ("tsv_m", {}),
    ("adamerging", {}), ("concrete_task_arithmetic", {}),
    ("concrete_task_arithmetic", {"mask": "discrete"}),
)  # fmt: skip
"""Models that are merged there and rebuilt on the CPU."""


def part(place: Place, few: Callable[[], World], pool: Callable[[], Path], root: Path) -> Part:
    """`few`: gives a replica's world; `pool`: the tiny pool; commands run in `root`."""
    replicas, product = Replicas(place, few), Product(place, pool, root)

    def rows() -> Iterator[Row]:
        for name, params in MADE:
            more = "".join(f", {key} {value}" for key, value in params.items())
            yield Row(f"{name}{more}: rebuilt", partial(same, replicas, name, params))
        two = {"replicas": 2, "gpus": 0.25}
        yield Row("sweep, two replicas", partial(product.sweep, "product", METHODS_SWEPT, **two))
        for name in METHODS_SWEPT:
            if (
                name != "wemoe"
            ):  # it computes a model for each sample, so no single model can be exported
                yield Row(f"{name}: exported", partial(product.exported, name))
        half = {"shards": 2, "gpus": 0.5}
        few_methods = {key: METHODS_SWEPT[key] for key in ("task_arithmetic", "adamerging")}
        yield Row("sweep, two shards", partial(product.sweep, "cut", few_methods, **half))
        yield Row("training of an expert", product.trained)

    return Part("product", CHECKED, 150, rows, "Merged there, rebuilt on the CPU; then commands.")
