"""What one method holds, alone in a process: peak memory above that of the loaded pool.

    python -m benchmarks.sweeps.alone SPEC METHOD PARAMS

SPEC is a sweep file, PARAMS the method's parameters as JSON. Prints megabytes, resident: of an
evaluation on the select split by a merge, say, with its embeddings and statistics made anew; of a
method that learns, of a few steps and the evaluation after them. Images and heads come from the
cache, where a sweep has left them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

from actors.artifacts.recipe import Recipe
from actors.cluster.peak_memory import peak_bytes, reset_peak
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.gate_features.extractor import open_extractor
from actors.pool.pool import open_pool
from fusion.registry import METHODS, Learned
from sweeps.spec.sweep import SweepSpec, load
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs, sizes_of
from sweeps.trials.trainable import learner_of

STEPS = 3
"""Of methods that learn: every step holds the same."""

CPU = torch.device("cpu")


def held(spec: SweepSpec, method: str, params: dict[str, Any]) -> int:
    """Bytes at the peak above those before, in this process."""
    pool = open_pool(spec.pool.base, spec.pool.experts)
    tasks = {
        name: open_task(TaskSource(name, t.dataset, t.image, t.label, t.templates, t.classnames))
        for name, t in spec.tasks.items()
    }
    source = params.get("extractor")
    extractor = open_extractor(source, f"methods.{method}.extractor") if source else None
    data = prepare_data(
        pool.base,
        tasks,
        Splits(**spec.splits.model_dump()),
        ["fit", "select", "report"],
        cache_dir(),
        extractors=[extractor] if extractor else [],
    )
    with tempfile.TemporaryDirectory() as scratch:
        cache = embedding_cache(Path(scratch), pool, "cpu", {})
        experts = local_experts(pool, data, cache)
        reset_peak(CPU)
        before = psutil.Process().memory_info().rss
        row = METHODS.get(method)
        if not isinstance(row, Learned):
            experts.evaluate(Recipe(method, params), "select")
        else:
            few = {key: STEPS for key in ("steps", "coefficient_steps") if key in row.parameters}
            config = {"method": method, "params": params | few, "trial_key": "alone", "seed": 0}
            inputs = LearningInputs(
                pool.tasks,
                pool.groups,
                data,
                sizes_of(data),
                {(str(source), False): extractor} if extractor else {},
                LocalStore(Path(scratch)),
                frozenset(),
                hashes=pool.tasks,
            )
            learner_of(method)(config, experts, inputs, lambda *_: None)
        return peak_bytes(CPU) - before


def main() -> None:
    """Print megabytes."""
    file, method, params = sys.argv[1:4]
    print(f"{held(load(file), method, json.loads(params)) / 1e6:.0f}")


if __name__ == "__main__":
    main()
