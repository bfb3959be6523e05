"""One trial, in a process that computes nothing: it imports Ray and no torch.

A sweep's trial processes start while the replicas already work; what they import, the replicas wait
for. So this file knows the desk by its calls alone, and speaks plain numbers and dicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune


def run_trial(config: Mapping[str, Any], desk: Any) -> None:
    """The trainable: one suggestion of `MethodSearch`, measured on the select split.

    Reports the metrics and, under `entry`, the fields of a ledger entry; `status` says whether it
    failed, and then the error is raised as well, for Tune to see.
    """
    entry = {**config, "split": "select", "started": datetime.now(UTC).isoformat()}
    try:
        found = ray.get(desk.call.remote("measure", config["method"], config["params"], "select"))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[-1]
        kind = type(getattr(error, "cause", None) or error).__name__
        said = reason if reason.startswith(kind) else f"{kind}: {reason}"
        entry |= {"status": "failed", "error": said[:1000]}
        tune.report({"entry": {**entry, "ended": datetime.now(UTC).isoformat()}})
        raise
    entry |= {**found, "status": "done", "ended": datetime.now(UTC).isoformat()}
    tune.report({**found["metrics"], "entry": entry})
