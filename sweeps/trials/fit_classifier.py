"""Trial of a method that fits a classifier: a replica fits it, the sweep keeps the result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from actors.artifacts.recipe import Recipe
from actors.experts.protocol import LearningExperts
from sweeps.planning.learning_needs import LAST_RUNG
from sweeps.results.folder import learned_name
from sweeps.results.trial_state import State
from sweeps.trials.learn_coding import LearningInputs, Report


def fit(
    config: Mapping[str, Any], experts: LearningExperts, inputs: LearningInputs, report: Report
) -> None:
    """Fit on the fit and select rows, and report the select split.

    Embeddings are on the replicas' nodes, so one replica does the work: a whole search over
    embeddings and logits is one call, one trial and one run, with its surface in the learned file.

    Raises:
        InputError: the method refuses its input, by task.
    """
    start = time.perf_counter()
    data, chosen = experts.fit(Recipe(config["method"], config["params"]))
    inputs.artifacts.put(learned_name(config["trial_key"]), data)
    found = experts.evaluate(Recipe(config["method"], config["params"], data), "select")
    report(LAST_RUNG, found, State(seconds=time.perf_counter() - start, chosen=chosen))
