"""Context of the fine-tuning trials of one training file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint, content_hash
from actors.data.task_rows import TaskData
from actors.families.protocol import Training
from actors.files.fingerprint import Fingerprint
from sweeps.train.ingredients import Trained, chosen, is_there, read_results, result_file, settle
from sweeps.train.searcher import meant
from sweeps.train.spec import TrainSpec, schema


@dataclass(frozen=True)
class FineTuningContext:
    """What all fine-tuning trials of one training file share."""

    spec: TrainSpec
    base: Checkpoint
    starts: Mapping[str, Checkpoint]
    """Task -> what its fine-tunings start from: the base, or the base with a fresh classifier."""
    data: Mapping[str, TaskData]
    contexts: Mapping[str, Fingerprint]
    """Task -> everything but parameters that its results depend on."""
    out: Path
    training: Training
    """Fine-tuning of the base's family."""
    nodes: dict[str, Any] = field(default_factory=dict)
    """Reports of the cluster's nodes, by id; each is queried once."""

    @property
    def defaults(self) -> dict[str, object]:
        """Default hyper-parameters; the seed is left out, being the trial's own."""
        known = schema(self.training.options).values()
        return {each.name: each.default for each in known if each.name != "seed"}

    @property
    def folders(self) -> dict[str, Path]:
        """Task -> folder of the model that its fine-tunings start from."""
        return {task: start.folder for task, start in self.starts.items()}

    def results(self, task: str) -> list[Trained]:
        """Results of a task that the file's search includes."""
        found = read_results(self.out, task)
        return meant(self.spec.finetune, task, self.spec.seed, self.contexts[task], found)

    def usable(self, task: str) -> list[Trained]:
        """Results of a task, without those whose weights should be kept and are missing: their
        results are deleted, so that they are trained again."""
        results, keep = self.results(task), self.spec.keep
        wanted = chosen(results, keep)
        gone = {each.key for each in wanted if not is_there(self.out, each, keep)}
        for key in gone:
            result_file(self.out, task, key).unlink()
        return [result for result in results if result.key not in gone]

    def settle(self, task: str) -> None:
        """Move a task's kept models to their folders and delete the others."""
        about = {"base": content_hash(self.base), "defaults": self.defaults}
        if self.starts[task] is not self.base:
            about["start"] = content_hash(self.starts[task])
        settle(self.out, self.results(task), self.spec.keep, about)
