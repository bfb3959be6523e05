"""Libraries that take seconds to import are loaded only by commands and processes that need them.

Modules are counted, not seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import content_hash
from actors.cluster.planner import Node, Resources
from actors.files.cache_dir import cache_dir
from sweeps.planning.prepare import prepare
from sweeps.spec.sweep import load
from sweeps.tracking import mlflow_store

HEAVY = (
    *(
        "torch",
        "ray",
        "ray.tune",
        "matplotlib",
        "mlflow",
        "sqlalchemy",
        "alembic",
        "transformers",
        "tokenizers",
        "datasets",
    ),
    *("pandas", "optuna", "plotly", "sklearn", "scipy.stats", "scipy.optimize", "scipy.cluster"),
    *("torch.distributed.tensor", "transformers.modeling_utils"),
)


def loaded(words: list[str], folder: Path) -> set[str]:
    """The modules of `HEAVY` that a command has loaded when it ends."""
    code = (
        "import json, sys\n"
        "from sweeps.__main__ import main\n"
        "try:\n    main()\n"
        f"finally:\n    print(json.dumps(sorted({set(HEAVY)} & set(sys.modules))))\n"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_plan_loads_torch_alone(tiny_pool: Any, tmp_path: Path) -> None:
    """Also where MLflow's store is there; heads that are in the cache are not checked again."""
    spec = load(tiny_pool.write(tmp_path / "s.yaml"))
    machine = Resources((Node(2, 0, 8 << 30),))
    prepared = prepare(spec, tmp_path / "outputs", machine)
    base = prepared.pool.base
    prepared.pool.family.heads(base, prepared.tasks, cache_dir())
    content_hash(base)
    (tmp_path / "outputs").mkdir()
    mlflow_store.connect(None, None, tmp_path / "outputs")
    assert loaded(["plan", "s.yaml"], tmp_path) == {"torch"}


def test_a_sweep_begins_with_torch_and_ray_alone() -> None:
    """MLflow, Tune and charts are imported while Ray and the replicas start. The module imports
    those of replicas and of tasks that read weights, which so load no more."""
    code = (
        "import json, sys, sweeps.execution.run\n"
        "assert {'actors.fleet.replica_setup', 'actors.families.registry'} < set(sys.modules)\n"
        f"print(json.dumps(sorted({set(HEAVY)} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"torch", "ray"}
