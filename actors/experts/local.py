"""Experts in this process: evaluate recipes, compute gradients, train, and merge over a pipeline of
shards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from actors.artifacts.fitted_file import fit
from actors.artifacts.head_file import open_head
from actors.artifacts.recipe import BASE, Recipe
from actors.cluster.metrics import count
from actors.cluster.peak_memory import PEAK_MEMORY, MemoryMeter
from actors.data.task_rows import TaskData, tasks_with
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.evaluation import Evaluation, Timing, score
from actors.experts.in_model_training import Trained, train
from actors.experts.metrics import ACCURACY
from actors.experts.model_runner import EXACT, ModelRunner, Precisions
from actors.experts.prediction.predict import Predictions, model_weights, predict, running_of
from actors.experts.prediction.racing import Standing, Terms, race
from actors.experts.prediction.timing import timed
from actors.experts.recipe import results_dtype
from actors.experts.statistics import compute_statistics
from actors.experts.unseen_tasks import learners, measured, unseen_of
from actors.families.protocol import segment_names
from actors.pool.pool import Pool, load_flat, unflatten
from actors.pool.reference_models import load_references
from actors.pool.running import Policy, batch_norm
from actors.shards.messages import weights_of
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.shard import Shard
from fusion.methods.learned.steps import Gradient, MicroBatch
from fusion.task_vectors.gram import Gram
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import TaskVectors


class LocalExperts:
    """The calls of `Experts`, carried out by a `ModelRunner` of this process."""

    replicas = 1
    """One call at a time."""

    def __init__(self, runner: ModelRunner, meter: MemoryMeter = PEAK_MEMORY) -> None:
        """`meter`: measures the peak memory of calls; by default that of this process."""
        self.runner, self.meter = runner, meter

    def merge(self, recipe: Recipe) -> dict[str, Tensor]:
        """The merged state dict, on the CPU; the resident model is not touched.

        Raises:
            InputError: an unknown method or parameter, or a method that makes no single model.
        """
        return self.runner.pipeline.merge(model_weights(self.runner, recipe))

    def evaluate(self, recipe: Recipe, role: str) -> Evaluation:
        """Evaluate the recipe on every task's rows of that role.

        The recipe `experts` evaluates each expert on the task of its name, and leaves out tasks
        without one.
        """
        start = time.perf_counter()
        return self.scored(self.predictions(recipe, role), recipe, role, start)

    def race(self, recipe: Recipe, role: str, terms: Terms) -> tuple[Evaluation, Standing]:
        """Evaluate until all rows are evaluated, or the candidate is worse than `terms.bar`.

        See `actors.experts.prediction.racing.race`. A stopped candidate has no scores.
        """
        start = time.perf_counter()
        names = self.tasks(recipe, role)
        found, standing = race(self.runner, recipe, names, role, terms)
        if found is None:
            count("samples", standing.rows, method=recipe.method)
        return self.scored(found or {}, recipe, role, start), standing

    def scored(self, found: Predictions, recipe: Recipe, role: str, start: float) -> Evaluation:
        """The evaluation of predictions; `start`: when the call began, by `perf_counter`."""
        data = self.runner.data
        scores = {
            name: score(
                each.logits,
                self.runner.labels(name, role),
                data[name].metric,
                data[name].values,
                each.written,
                each.recognised,
            )
            for name, each in found.items()
        }
        rows = sum(len(each.logits) for each in found.values())
        count("samples", rows, method=recipe.method)
        seconds = time.perf_counter() - start
        peak = self.meter.peak(self.runner.device, recipe.method)
        own = any(task.metric != ACCURACY.name for task in data.values())
        return Evaluation(scores, seconds, peak, unseen_of(data), own)

    def logits(self, recipe: Recipe, role: str) -> dict[str, Tensor]:
        """Task -> logits [N, C] of its rows of that role, which `evaluate` compares with labels."""
        return {name: each.logits for name, each in self.predictions(recipe, role).items()}

    def predictions(self, recipe: Recipe, role: str) -> Predictions:
        """Task -> predictions for its rows of that role."""
        return predict(self.runner, recipe, self.tasks(recipe, role), role)

    def tasks(self, recipe: Recipe, role: str) -> list[str]:
        """Tasks on which a recipe is evaluated."""
        runner = self.runner
        return measured(runner.data, runner.tasks, recipe.method, recipe.params, role)

    def evaluate_all(self, recipes: Sequence[Recipe], role: str) -> list[Evaluation]:
        """Evaluate several recipes, one after the other."""
        return [self.evaluate(recipe, role) for recipe in recipes]

    def expert_scores(self, role: str) -> dict[str, dict[str, dict[str, float]]]:
        """Base and each expert -> task -> metric -> score, from outputs that are cached or made.

        What a model writes is not decoded: these are scores of classes.
        """
        runner, found = self.runner, {}
        for name in (BASE, *runner.tasks):
            found[name] = {
                task: score(
                    runner.predicted_of(name, task, role).logits,
                    runner.labels(task, role),
                    runner.data[task].metric,
                    runner.data[task].values,
                ).values()
                for task in tasks_with(runner.data, role)
            }
        return found

    def running(self, recipe: Recipe) -> dict[str, Tensor]:
        """See `actors.experts.prediction.predict.running_of`."""
        return running_of(self.runner, recipe)

    def timed(self, recipe: Recipe, role: str) -> Timing:
        """See `actors.experts.prediction.timing.timed`."""
        return timed(self.runner, recipe, role)

    def statistics(self, recipe: Recipe) -> tuple[str, ...]:
        """See `actors.experts.statistics.compute_statistics`."""
        return compute_statistics(self.runner, recipe.method, recipe.params)

    def train(
        self, recipe: Recipe, state: bytes | None, first: int, last: int, seed: int
    ) -> Trained:
        """See `actors.experts.in_model_training.train`."""
        return train(self.runner, recipe, state, first, last, seed)

    def gram(self) -> Gram:
        """Inner products of the task vectors, tensor by tensor."""
        return self.runner.pipeline.gram()

    def fit(self, recipe: Recipe) -> tuple[bytes, dict[str, float]]:
        """See `actors.artifacts.fitted_file.fit`."""
        return fit(self.runner.task_embeddings, learners(self.runner.data), recipe)

    def gradients(
        self, micro_batches: Sequence[MicroBatch], role: str, trim: Trim
    ) -> list[Gradient]:
        """Losses of the micro-batches' rows of that role, and their gradients by coding."""
        surveyed = self.runner.trimmed(trim)
        return self.runner.pipeline.gradients(
            [
                (
                    self.runner.batch_of(micro_batch, role),
                    weights_of(surveyed, micro_batch.coding),
                )
                for micro_batch in micro_batches
            ]
        )

    def embed(self, expert: str, role: str) -> None:
        """Fill the cache with one expert's embeddings of every task's rows."""
        for task in tasks_with(self.runner.data, role):
            self.runner.embedded(expert, task, role)


def local_experts(
    pool: Pool,
    data: Mapping[str, TaskData],
    embeddings: EmbeddingCache,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    blocks: Sequence[tuple[int, int] | None] = (None,),
    vectors: TaskVectors | None = None,
    results: str = "base",
    precisions: Precisions = EXACT,
    policy: Policy = "reestimate",
) -> LocalExperts:
    """Load a pool and build its shards in this process.

    Args:
        pool: an opened pool.
        data: rows and head of each task.
        embeddings: cache of expert embeddings.
        device: device to compute on.
        dtype: dtype to compute in.
        blocks: segments [start, stop) of each shard; None: one shard with all.
        vectors: the pool's task vectors on `device`, where they are loaded already.
        results: `base` or `float32`: dtype that merged models are rounded to.
        precisions: precision of products of activations. Default fp32.
        policy: of the running statistics of batch norm of merged models. Default: reestimate.

    Raises:
        InputError: see `load_flat` and `batch_norm`.
    """
    vectors = unflatten(load_flat(pool), device) if vectors is None else vectors
    vectors = replace(vectors, results=results_dtype(results))
    chain = pool.family.segments(pool.base)
    heads = {name: open_head(task.head) for name, task in data.items()}
    references = {name: unflatten(flat).base for name, flat in load_references(pool).items()}
    shards = []
    for block in blocks:
        names = segment_names(chain, *(block or (0, len(chain))))
        part = vectors.restrict([name for name in vectors.base if name in names])
        others = {
            name: {key: tensor for key, tensor in tensors.items() if key in part.base}
            for name, tensors in references.items()
        }
        shards.append(
            Shard(pool.base, part, heads, device, dtype, block, len(blocks), references=others)
        )
        shards[-1].statistics_root = embeddings.root.parent
    names_of = [shard.names() for shard in shards]
    pipeline = Pipeline(shards, names_of, pool.groups, LocalLink())
    stacked = pool.stacked_rows(torch.device(device).type, str(dtype).removeprefix("torch."))
    return LocalExperts(
        ModelRunner(
            pipeline,
            pool.tasks,
            data,
            embeddings,
            device,
            pool.members_of,
            precisions,
            stacked,
            batch_norm(pool, policy),
        )
    )
