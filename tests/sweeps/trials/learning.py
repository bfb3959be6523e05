"""Trials of methods that learn, in this process: what a test of their loop gives and looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from actors.experts.local import LocalExperts
from fusion.registry import METHODS
from sweeps.results.folder import learned_name
from sweeps.trials import learn_coding, learn_in_model
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs
from tests.sweeps.learning_pool import ADAMERGING, DAWE

NAMES = ("lines", "tones", "blobs")
FEW = {"batch_size": 4, "learning_rate": 0.02, "save_every": 3}
PARAMS: dict[str, dict[str, Any]] = {
    "dawe": DAWE,
    "adamerging": ADAMERGING,
    "ewemoe": {**FEW, "steps": 9},
    "concrete_adamerging": {**FEW, "steps": 4, "coefficient_steps": 5},
}
STEPWISE = frozenset({"dawe", "ewemoe"})
"""Methods with a scheduler."""


Config: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Trials:
    """Local experts, inputs of learning trials over them, and an extractor for gates."""

    experts: LocalExperts
    inputs: LearningInputs
    source: str

    def trial(
        self, method: str, folder: Path, **params: Any
    ) -> tuple[dict[str, Any], LearningInputs]:
        """Configuration of a trial, and its inputs with artifacts in a folder."""
        given = {"extractor": self.source} if method == "dawe" else {}
        given |= {**PARAMS[method], **params}
        config = {"method": method, "params": given, "trial_key": "k", "seed": 5}
        return config, replace(self.inputs, artifacts=LocalStore(folder))

    def run(self, method: str, folder: Path, **params: Any) -> tuple[list[Any], bytes]:
        """The reports (rung, metrics, step, curve) of a trial, and the learned file's bytes."""
        config, inputs = self.trial(method, folder, **params)
        reports = learn(config, self.experts, inputs)
        return reports, (folder / learned_name("k")).read_bytes()


def learn(config: Config, experts: Any, inputs: LearningInputs) -> list[Any]:
    """The reports of a trial."""
    in_model = METHODS[config["method"]].learned == "in_model"
    reports: list[Any] = []
    (learn_in_model if in_model else learn_coding).learn(
        config,
        experts,
        inputs,
        lambda rung, found, state: reports.append(
            (rung, found.metrics(), state.step, [dict(point) for point in state.curve])
        ),
    )
    return reports
