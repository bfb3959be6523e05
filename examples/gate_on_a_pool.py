"""Learn a gate on a pool (DAWE): a small network that mixes the experts anew for each image.

    python examples/gate_on_a_pool.py

The gate reads features of a frozen ResNet and learns without labels: it lowers the entropy of the
merged model's predictions. Models and data are those of `make demo`, made on this machine, once, in
about a minute; the sweep takes a few.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sweeps
from actors.artifacts import gate_file
from actors.embedded import EmbeddedPool, build

TASKS = ("digits", "letters", "textures")


def sweep_of(pool: EmbeddedPool) -> dict[str, Any]:
    """The sweep, as a sweep file has it (docs/sweep_file.md, docs/learned.md)."""
    return {
        "name": "gate",
        "pool": {"base": pool.base, "experts": {name: pool.experts[name] for name in TASKS}},
        "tasks": {name: {"dataset": pool.data[name]} for name in TASKS},
        "methods": {
            "task_arithmetic": {"scale": {"grid": [0.3, 0.5]}},
            "dawe": {
                "extractor": str(pool.extractor),
                "grouping": "task",  # one coefficient an expert and image
                "softmax": True,  # codings stay on the simplex
                "rate": "per_norm",
                "learning_rate": 0.03,
                "steps": 300,
            },
        },
    }


def main(pool: EmbeddedPool, outputs: Path) -> sweeps.Results:
    """Run the sweep, compare the gate with one static model, and open the gate's file.

    Args:
        pool: folders of a base, its experts, their data, and a feature extractor.
        outputs: the folder of all sweeps.
    """
    results = sweeps.run(sweep_of(pool), outputs=outputs, resume=True)

    # `experts` is the oracle of a gate: each task's rows with the task's own expert.
    for method in ("task_arithmetic", "dawe", "experts"):
        scores = results.row(method).test
        tasks = "  ".join(f"{task} {scores[f'acc/{task}']:.3f}" for task in TASKS)
        print(f"{method:16} mean {scores['acc/mean']:.3f}  {tasks}")

    # The gate is one model an image, so there is no model to export: its file is the result.
    file = results.folder / "recipes" / "dawe.safetensors"
    gate, manifest = gate_file.load(file.read_bytes(), str(file))
    size = sum(parameter.numel() for parameter in gate.parameters())
    print(f"the gate: {manifest.width} features -> {len(manifest.tasks)} coefficients;", end=" ")
    print(f"{size} parameters, {manifest.steps} steps; {file}")
    return results


if __name__ == "__main__":
    main(build(), Path("outputs"))
