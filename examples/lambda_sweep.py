"""A sweep over λ, the scale of task arithmetic, from Python; its table, best row and model.

    python examples/lambda_sweep.py

The models and data are those of `make demo`. They are made on this machine, once, in about a
minute; the sweep takes about another.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sweeps
from actors.embedded import EmbeddedPool, build


def sweep_of(pool: EmbeddedPool) -> dict[str, Any]:
    """The sweep, as a sweep file has it (docs/sweep_file.md)."""
    return {
        "name": "lambda",
        "pool": {"base": pool.base, "experts": pool.experts},
        "tasks": {name: {"dataset": folder} for name, folder in pool.data.items()},
        "methods": {
            "simple_average": {},
            "task_arithmetic": {"scale": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]}},
        },
    }


def main(pool: EmbeddedPool, outputs: Path) -> sweeps.Results:
    """Run the sweep, and read its results.

    Args:
        pool: folders of a base, its experts and their data.
        outputs: the folder of all sweeps.
    """
    results = sweeps.run(sweep_of(pool), outputs=outputs, resume=True)

    # The table: one line a method, the best first; then the references.
    shown = results.table[["method", "params", "val/acc/mean", "test/acc/mean"]]
    print(shown.round(3).to_string())

    # Every trial is a file of the ledger: the accuracy on the select split for each λ.
    trials = [json.loads(file.read_text()) for file in results.folder.glob("ledger/*.json")]
    for trial in sorted(trials, key=lambda trial: trial["params"].get("scale", 0.0)):
        if trial["method"] == "task_arithmetic":
            print(f"λ = {trial['params']['scale']}: {trial['metrics']['acc/mean']:.3f}")

    # The best row, and its model, which is rebuilt from its recipe.
    best = results.best
    assert best is not None
    low, high = best.test_ci95["acc/mean"]
    print(f"best: {best.method} {dict(best.params)}: {best.test['acc/mean']:.3f}", end=" ")
    print(f"[{low:.3f}, {high:.3f}] on test data")
    model = results.model(best)
    print("its model:", type(model).__name__, f"{sum(p.numel() for p in model.parameters()):,}")
    return results


if __name__ == "__main__":
    main(build(), Path("outputs"))
