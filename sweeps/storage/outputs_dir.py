"""Default folder of all sweeps; every command needs it, so this module imports little."""

from __future__ import annotations

import os
from pathlib import Path


def outputs_dir() -> Path:
    """Default folder of all sweeps: `$FUSION_SWEEPS_OUTPUTS`, else `./outputs`.

    A job that runs in Ray's copy of what was sent to it, which goes with the job, keeps its sweeps
    in the home of who runs the cluster.
    """
    if chosen := os.environ.get("FUSION_SWEEPS_OUTPUTS"):
        return Path(chosen).expanduser()
    if in_job() and "runtime_resources" in Path.cwd().parts:
        return Path.home() / "fusion-sweeps" / "outputs"
    return Path("outputs")


def in_job() -> bool:
    """Whether this process was started by Ray as a job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
