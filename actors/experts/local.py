"""Experts: merge by recipe, evaluate on a task's rows, teach; over a pipeline of shards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.fitted_file import fit
from actors.artifacts.recipe import BASE
from actors.artifacts.recipe import REFERENCES as REFERENCES
from actors.artifacts.recipe import Recipe as Recipe
from actors.cluster.metrics import count
from actors.data.images.pixel_cache import Pixels, open_pixels
from actors.data.task_rows import BATCH as BATCH
from actors.data.task_rows import Rows as Rows
from actors.data.task_rows import TaskData as TaskData
from actors.data.task_rows import batches, tasks_with
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import Evaluation as Evaluation
from actors.experts.evaluation import TaskScore as TaskScore
from actors.experts.evaluation import score
from actors.experts.in_model_training import Trained, opened, train
from actors.experts.peak_memory import WATER, Water
from actors.experts.predict import answered
from actors.experts.protocol import Experts as Experts
from actors.experts.recipe import learned_coding, static_method
from actors.experts.recipe import merged as merged
from actors.experts.statistics import gathered
from actors.experts.unseen_tasks import learners, measured, unseen_of
from actors.families.clip.zero_shot_heads import read_head
from actors.gate_features.feature_cache import open_features
from actors.shards.messages import Batch, Weights, weights_of
from actors.shards.pipeline import Pipeline
from fusion.errors import InputError
from fusion.kinds import Resident
from fusion.logits.cosine_head import logits
from fusion.methods.classifiers.interface import Plane
from fusion.methods.learned.steps import Gradient, Lesson
from fusion.registry import Informed, Static
from fusion.task_vectors.coding import one_hot
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim


class LocalExperts:
    """A pipeline of shards, and the data of each task."""

    replicas = 1
    """One call at a time."""

    def __init__(
        self,
        pipeline: Pipeline,
        tasks: Sequence[str],
        data: Mapping[str, TaskData],
        embeddings: EmbeddingCache,
        device: str | torch.device = "cpu",
        water: Water = WATER,
    ) -> None:
        """`tasks`: the experts' names: the T axis of every coding; `water`: who knows the peak
        memory of calls, where that is not this process."""
        self.water = water
        self.pipeline = pipeline
        self.tasks = tuple(tasks)
        self.data = data
        self.embeddings = embeddings
        self.device = torch.device(device)
        self.heads = {name: read_head(task.head) for name, task in data.items()}
        self.opened: dict[Path, Pixels] = {}
        self.trims: dict[Trim, Weights] = {}
        self.filling = threading.RLock()
        """Held over passes through the resident model: two callers in turn would each time merge
        anew what the other has just overwritten."""

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU; the resident model is not touched.

        Raises:
            InputError: an unknown method or parameter, or a method that makes no single model.
        """
        return self.pipeline.merge(self.weights(recipe))

    def weights(self, recipe: Recipe) -> Weights:
        """The one model that a recipe makes, surveyed where it needs to be.

        Raises:
            InputError: see `merge`.
        """
        method = static_method(recipe)
        if isinstance(method, Informed):
            found = self.statistics(recipe)
            return self.pipeline.weights(recipe.method, recipe.params, statistics=found)
        if isinstance(method, Static):
            return self.pipeline.weights(recipe.method, recipe.params)
        if method is None:
            return self.pipeline.weights(coding=torch.zeros(1, len(self.tasks), 1))
        if isinstance(method, Resident):
            return opened(self, recipe)[0]
        coding, trim = learned_coding(method, recipe, self.tasks, self.pipeline.groups)
        return self.pipeline.weights(coding=coding, trim=trim)

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Every task's rows of that role through what the recipe makes.

        `experts` evaluates each expert on the task of its name; tasks without one are left out.
        """
        start = time.perf_counter()
        found = self.logits(recipe, role)
        scores = {name: score(z, self.labels(name, role)) for name, z in found.items()}
        count("samples", sum(map(len, found.values())), method=recipe.method)
        seconds = time.perf_counter() - start
        peak = self.water.told(self.device, recipe.method)
        return Evaluation(scores, seconds, peak, unseen_of(self.data))

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """Task -> logits [N, C] of its rows of that role, what `evaluate` compares with labels."""
        names = measured(self.data, self.tasks, recipe.method, recipe.params, role)
        return answered(self, recipe, names, role)

    def tasks_of(self, role: str) -> list[str]:
        """See `tasks_with`."""
        return tasks_with(self.data, role)

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """One after the other."""
        return [self.evaluate(recipe, role) for recipe in recipes]

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """See `actors.experts.statistics.gathered`."""
        return gathered(self, recipe.method, recipe.params)

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> Trained:
        """See `actors.experts.in_model_training.train`."""
        return train(self, recipe, state, first, last, seed)

    def gram(self) -> Gram:
        """Inner products of the task vectors, tensor by tensor."""
        return self.pipeline.gram()

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """See `actors.artifacts.fitted_file.fit`."""
        return fit(self.plane, learners(self.data), recipe)

    def plane(self, task: str) -> Plane:
        """One task as methods of the logit plane see it."""
        return Plane(
            self.tasks,
            self.heads[task],
            lambda role: self.labels(task, role),
            lambda source, role, at: self.embedded_at(source, task, role, at),
        )

    def gradients(self, lessons: Sequence[Lesson], role: str, trim: Trim) -> list[Gradient]:
        """Losses of the lessons' rows of that role, and their gradients by coding."""
        surveyed = self.trimmed(trim)
        return self.pipeline.gradients(
            [
                (self.lesson_batch(lesson, role), weights_of(surveyed, lesson.coding))
                for lesson in lessons
            ]
        )

    def lesson_batch(self, lesson: Lesson, role: str) -> Batch:
        """Where a lesson's rows lie, with their labels where it learns from labels."""
        parts = tuple(self.batch(task, role, rows).parts[0] for task, rows in lesson.rows.items())
        if lesson.beta is None:
            return Batch(parts)
        labels = [self.labels(task, role)[rows] for task, rows in lesson.rows.items()]
        return Batch(parts, torch.cat(labels), float(lesson.beta))

    def trimmed(self, trim: Trim) -> Weights:
        """Weights without a coding, whose trim is surveyed: once for all steps."""
        if trim not in self.trims:
            self.trims = {trim: self.pipeline.weights(trim=trim)}
        return self.trims[trim]

    def embed(self, expert: str, role: str) -> None:
        """Fill the cache with one expert's embeddings of every task's rows."""
        for task in self.tasks_of(role):
            self.embedded(expert, task, role)

    def embedded(self, expert: str, task: str, role: str) -> Tensor:
        """Un-normalised image embeddings [N, D], float32, from the cache or made now.

        `expert` is a name of the pool, or `pretrained`.
        """
        rows = self.data[task].rows[role]

        def make() -> Tensor:
            return self.embed_rows(expert, task, role, list(batches(self.size(task, role))))

        return self.embeddings.get(expert, rows.pixels, rows.indices, make)

    def embedded_at(self, expert: str, task: str, role: str, at: Tensor | None) -> Tensor:
        """Embeddings of some rows, made and cached on their own: only those are run.

        Never taken from those of all rows, even where these are cached: batches cut elsewhere
        differ in the last bits, and a result may not depend on what happened to be cached.
        """
        if at is None:
            return self.embedded(expert, task, role)
        rows = self.data[task].rows[role]
        chosen = at.numpy() if rows.indices is None else rows.indices[at.numpy()]

        def make() -> Tensor:
            return self.embed_rows(expert, task, role, [at[p] for p in batches(len(at))])

        return self.embeddings.get(expert, rows.pixels, chosen, make)

    def embed_rows(
        self, expert: str, task: str, role: str, parts: Sequence[slice | Tensor]
    ) -> Tensor:
        """Embeddings of parts of a role's rows, made now."""
        coding = torch.zeros(1, len(self.tasks), 1)
        weights = self.pipeline.weights(
            coding=coding if expert == BASE else one_hot(self.tasks, expert), own=True
        )
        cut = (self.batch(task, role, part) for part in parts)
        with self.filling:
            return torch.cat([z.float().cpu() for z in self.pipeline.embed(weights, cut)])

    def logits_of(self, expert: str, task: str, role: str) -> Tensor:
        """Logits [N, C] of one expert, or of the base."""
        embedded, head = self.embedded(expert, task, role), self.heads[task]
        return torch.cat([logits(embedded[rows], head) for rows in batches(len(embedded))])

    def headed(self, task: str, parts: Iterable[Tensor]) -> Tensor:
        """Embeddings, batch by batch, through a task's head: logits [N, C]."""
        head = self.heads[task]
        return torch.cat([logits(z.float(), head.to(z.device)).cpu() for z in parts])

    def size(self, task: str, role: str) -> int:
        """Rows of a task in a role."""
        rows = self.data[task].rows[role]
        return len(self.open(rows.pixels).labels) if rows.indices is None else len(rows.indices)

    def batch(self, task: str, role: str, part: slice | Tensor) -> Batch:
        """Some of a task's rows, as rows of its pixel file."""
        rows = self.data[task].rows[role]
        at: NDArray[np.int64] = (
            np.arange(part.start, part.stop) if isinstance(part, slice) else part.numpy()
        )
        return Batch(((task, rows.pixels, at if rows.indices is None else rows.indices[at]),))

    def labels(self, task: str, role: str) -> Tensor:
        """int64 [N]."""
        rows = self.data[task].rows[role]
        labels = self.open(rows.pixels).labels
        return labels if rows.indices is None else labels[torch.from_numpy(rows.indices)]

    def features(self, task: str, role: str, extractor: str) -> Tensor:
        """What an extractor says of a task's rows: float32 [N, d].

        Raises:
            InputError: features that were not prepared.
        """
        rows = self.data[task].rows[role]
        if extractor not in rows.features:
            raise InputError(f"task {task!r}: no features of extractor {extractor!r} on {role}")
        features = open_features(rows.features[extractor])
        return features if rows.indices is None else features[torch.from_numpy(rows.indices)]

    def open(self, path: Path) -> Pixels:
        """The memory-mapped pixel file, opened once."""
        if path not in self.opened:
            self.opened[path] = open_pixels(path)
        return self.opened[path]
