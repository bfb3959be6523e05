"""Tune trainable: one trial. It computes nothing itself; its process imports Ray and no torch.

A sweep's trial processes start while the replicas already work; what they import, the replicas wait
for. So this file sends the dispatcher a request whose result is plain numbers and dicts.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune

from actors.artifacts.recipe import Recipe
from actors.experts.requests import Measure, Race


def run_trial(
    config: Mapping[str, Any], client: bytes, dispatcher: Any, inputs: bytes | None
) -> None:
    """Run one suggestion of `MethodSearch` and report its select-split metrics.

    Reports the metrics and, under `entry`, the fields of a ledger entry; `status` says whether it
    failed, or was stopped in a race, and then there are no metrics. Raises nothing: for Tune, a
    trial that raised is one whose process died, which runs again. A method that learns also reports
    intermediate results, with `rung` below 9; if a scheduler stops the trial, the last one counts.

    Args:
        config: the suggestion.
        client: a pickled `Client`; opened by trials that learn, which need torch.
        dispatcher: the fleet's dispatcher actor.
        inputs: pickled `LearningInputs`, if `config["method"]` learns.
    """
    race = config.get("race")
    asked = {name: value for name, value in config.items() if name != "race"}
    entry = {**asked, "split": "select", "started": datetime.now(UTC).isoformat()}
    try:
        if inputs is not None and config["method"] in (opened := pickle.loads(inputs))["learns"]:
            learn_trial(config, entry, ray.cloudpickle.loads(client), opened["inputs"])
            return
        key = config["trial_key"]
        recipe = Recipe(config["method"], config["params"])
        request = Race(recipe, "select", **race) if race else Measure(recipe, "select")
        found = ray.get(dispatcher.call.remote(request, label=key, when_all_started=True))
        found["busy_s"] = ray.get(dispatcher.busy_seconds.remote(key))
    except Exception as error:
        root: BaseException = error
        while isinstance(cause := getattr(root, "cause", None), BaseException):
            root = cause  # Ray's errors hold what was raised in an actor, and that in another
        reason = (str(root).strip().splitlines() or [""])[-1]
        kind = type(root).__name__
        said = reason if reason.startswith(kind) else f"{kind}: {reason}"
        entry |= {"status": "failed", "error": said[:1000]}
        tune.report({"entry": {**entry, "ended": datetime.now(UTC).isoformat()}})
        return
    status = "stopped" if "stopped" in found else "done"
    entry |= {**found, "status": status, "ended": datetime.now(UTC).isoformat()}
    tune.report({**found["metrics"], "entry": entry})


def learn_trial(
    config: Mapping[str, Any], entry: dict[str, Any], client: Any, inputs: bytes
) -> None:
    """Run a trial of a method that learns; imports torch."""
    from sweeps.planning.learning_needs import LAST_RUNG

    client = client.named(config["trial_key"])

    def report(rung: int, evaluation: Any, state: Any) -> None:
        found = evaluation.plain()
        facts = {"trial_s": state.seconds, "steps": state.step, "curve": state.curve}
        facts["choices"] = state.choices
        facts["busy_s"] = client.busy_seconds()
        now = datetime.now(UTC).isoformat()
        # Infinite values (a temperature of a plain mean) are not metrics; the file holds them.
        finite = {name: value for name, value in state.chosen.items() if math.isfinite(value)}
        found["metrics"] |= {f"chosen/{name}": value for name, value in finite.items()}
        done = {**entry, **found, **facts, "status": "done", "ended": now}
        tune.report({**found["metrics"], "rung": rung, "final": rung == LAST_RUNG, "entry": done})

    learner_of(config["method"])(config, client, ray.cloudpickle.loads(inputs), report)


def learner_of(method: str) -> Callable[..., None]:
    """Function that runs a learning trial of a method: `learner(config, experts, inputs, report)`;
    imports torch."""
    from fusion.registry import METHODS, Adaptive, Fitted, InModel, Row, Selected
    from sweeps.spec.method import for_kind
    from sweeps.trials.fit_classifier import fit
    from sweeps.trials.learn_coding import learn
    from sweeps.trials.learn_in_model import learn as learn_in_model
    from sweeps.trials.select_ingredients import select

    table: Mapping[type[Row], Callable[..., None]] = {
        Adaptive: learn,
        Selected: select,
        Fitted: fit,
        InModel: learn_in_model,
    }
    return for_kind(table, METHODS[method])
