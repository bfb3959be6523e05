"""The model of a pool over a pipeline of shards, with each task's rows, head and embeddings.

`ModelRunner` reads rows, runs experts through the pipeline, applies heads and caches embeddings.
Prediction (`prediction/`), statistics of data (`statistics.py`) and in-model training
(`in_model_training.py`) build on it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.artifacts.head_file import open_head, read_head
from actors.artifacts.recipe import BASE
from actors.data.row_file import open_labels, open_lengths
from actors.data.task_rows import BATCH, SAMPLES, Cuts, TaskData, batches, cut_rows
from actors.data.text.written_answers import NO_CLASS, judged, texts_of
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.unseen_tasks import adapted_role
from actors.gate_features.feature_cache import open_features
from actors.pool.running import NO_BATCH_NORM, BatchNorm
from actors.shards.messages import Batch, Weights
from actors.shards.pipeline import Pipeline
from fusion.errors import InputError
from fusion.logits.head import AnswerHead, Head
from fusion.merged_layers.precision import Precision
from fusion.methods.classifiers.interface import MERGED, TaskEmbeddings
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.coding import one_hot
from fusion.task_vectors.sparsify import Trim
from fusion.task_vectors.task_vectors import StateDict

LONGEST = 19
"""Tokens that are written at most: the original's `generate` stops at 20 with the start token."""

SELECTING = ("fit", "select")
"""Roles of rows that models learn from, or are chosen by."""


@dataclass(frozen=True)
class Precisions:
    """Precision of products of activations, by use."""

    passes: Precision = "fp32"
    """Of learning, and of evaluations by which models are chosen."""
    report: Precision = "fp32"
    """Of evaluations that are reported: of all other rows."""

    def of(self, role: str) -> Precision:
        """Precision of an evaluation of the rows of a role.

        >>> Precisions("bf16").of("select"), Precisions("bf16").of("report")
        ('bf16', 'fp32')
        """
        return self.passes if role in SELECTING else self.report


EXACT = Precisions()


Embed: TypeAlias = Callable[[Iterable[tuple[Tensor | slice, Batch]]], Iterator[Tensor]]
"""embed((rows, their batch), …) -> outputs of each batch, by the models of these rows."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of a model for N rows of one task."""

    logits: Tensor
    """[N, C]."""
    written: Tensor | None = None
    """int64 [N]: of a head of answers, the class whose answer greedy decoding writes, −1 where it
    is none; None: of other heads, and where logits of several models were combined."""
    recognised: Tensor | None = None
    """bool [N]: of a gate, whether its largest weight is that of the task's own expert; None: of
    other methods, and of tasks without an expert."""

    def scaled(self, beta: float) -> Predicted:
        """The same with logits times β."""
        return replace(self, logits=beta * self.logits)


def cut_back(parts: Sequence[Predicted], cuts: Cuts) -> Predicted:
    """Predictions of the parts of a cut, in the order of the rows."""
    written = [part.written for part in parts if part.written is not None]
    logits = cuts.joined(part.logits for part in parts)
    return Predicted(logits, cuts.joined(written) if written else None)


class ModelRunner:
    """A pipeline of shards, the data of each task, and caches."""

    def __init__(
        self,
        pipeline: Pipeline,
        tasks: Sequence[str],
        data: Mapping[str, TaskData],
        embeddings: EmbeddingCache,
        device: str | torch.device = "cpu",
        references: Mapping[str, str | None] | None = None,
        precisions: Precisions = EXACT,
        stacked: int = 0,
        norms: BatchNorm = NO_BATCH_NORM,
    ) -> None:
        """Read the heads; rows and embeddings are opened on first use.

        Args:
            pipeline: the shards that hold the pool.
            tasks: the experts' names: the T axis of every coding.
            data: rows and head of each task.
            embeddings: cache of expert embeddings.
            device: device on which the shards compute.
            references: finished model -> the member of the pool that it is; None: of none.
            precisions: precision of products of activations. Default fp32.
            stacked: most rows in one pass of several tasks' models, see `steps.stacked_rows`.
            norms: running statistics of batch norm. Default: the models have no batch norm.
        """
        self.norms = norms
        self.measured: OrderedDict[str, StateDict] = OrderedDict()
        """Running statistics of the last merged models, by all that they depend on."""
        self.pipeline = pipeline
        self.tasks = tuple(tasks)
        self.data = data
        self.embeddings = embeddings
        self.references = references or {}
        self.precisions = precisions
        self.stacked = stacked
        self.device = torch.device(device)
        self.heads = {name: read_head(task.head) for name, task in data.items()}
        """Task -> matrix [C, D] of its head file."""
        self.task_heads = {name: open_head(task.head) for name, task in data.items()}
        self.moved_heads: dict[tuple[str, torch.device], Head] = {}
        self.opened: dict[Path, Tensor] = {}
        self.lengths: dict[Path, NDArray[np.int64] | None] = {}
        self.trims: dict[Trim, Weights] = {}
        self.orders: dict[tuple[object, ...], list[Any]] = {}
        """Orders of rows in which candidates are raced; see `prediction/racing.py`."""
        self.filling = threading.RLock()
        """Held while batches run through the resident model: two alternating callers would each
        merge again what the other has overwritten."""

    def task_embeddings(self, task: str, of: Mapping[str, Any] | None = None) -> TaskEmbeddings:
        """Embeddings, labels and head of one task, for classifiers on fixed embeddings.

        Args:
            task: its name.
            of: the method that merges the source `MERGED`, with its parameters. What reads it
                adapts without labels: its fit rows are those of `adapted_role`. Default: no such
                source.
        """

        def embedded(source: str, role: str, at: Tensor | None) -> Tensor:
            if of is None:
                return self.embedded_at(source, task, role, at)
            role = adapted_role(self.data, role) if role == "fit" else role
            if source != MERGED:
                return self.embedded_at(source, task, role, at)
            ((method, params),) = of.items()
            cuts = self.cuts(task, role, at=at)
            return self.outputs(self.pipeline.weights(method, params), task, role, cuts)

        return TaskEmbeddings(
            self.tasks,
            self.task_heads[task],
            lambda role: self.labels(task, role),
            embedded,
            task,
        )

    def batch_of(self, micro_batch: MicroBatch, role: str) -> Batch:
        """Rows of a micro-batch, with labels if the method learns from labels."""
        parts = tuple(
            self.batch(task, role, rows).parts[0] for task, rows in micro_batch.rows.items()
        )
        made = Batch(parts, precision=self.precisions.passes)
        if micro_batch.beta is None:
            return replace(made, averaged=self.averaged(micro_batch.rows))
        labels = [self.labels(task, role)[rows] for task, rows in micro_batch.rows.items()]
        return replace(made, labels=torch.cat(labels), beta=float(micro_batch.beta))

    def averaged(self, tasks: Iterable[str]) -> frozenset[str]:
        """The tasks whose loss is the entropy of the mean of a batch's logits."""
        heads = {task: self.task_heads[task] for task in tasks}
        return frozenset(t for t, h in heads.items() if isinstance(h, AnswerHead) and h.averaged)

    def of_member(self, weights: Weights, member: str) -> Weights:
        """Weights with the running statistics of a member, or reference, if it has batch norm."""
        known = self.norms.members
        return self.with_running(weights, known[member]) if known else weights

    def with_running(self, weights: Weights, running: StateDict) -> Weights:
        """Weights with running statistics of batch norm."""
        return replace(weights, running=self.pipeline.link.put(running))

    def trimmed(self, trim: Trim) -> Weights:
        """Weights without a coding whose trim has been surveyed; cached for all steps."""
        if trim not in self.trims:
            self.trims = {trim: self.pipeline.weights(trim=trim)}
        return self.trims[trim]

    def embedded(self, expert: str, task: str, role: str) -> Tensor:
        """Unnormalised embeddings [N, D], float32, from the cache or computed.

        `expert` is a name of the pool, or `pretrained`.
        """
        rows = self.data[task].rows[role]

        def make() -> Tensor:
            return self.embed_rows(expert, task, role, self.cuts(task, role))

        precision = self.precisions.of(role)
        return self.embeddings.get(expert, rows.file, rows.indices, make, precision)

    def embedded_at(self, expert: str, task: str, role: str, at: Tensor | None) -> Tensor:
        """Embeddings of some rows, computed and cached separately.

        They are never taken from cached embeddings of all rows: other batch boundaries change the
        last bits, and a result must not depend on the state of the cache.
        """
        if at is None:
            return self.embedded(expert, task, role)
        rows = self.data[task].rows[role]
        chosen = at.numpy() if rows.indices is None else rows.indices[at.numpy()]

        def make() -> Tensor:
            return self.embed_rows(expert, task, role, self.cuts(task, role, at=at))

        return self.embeddings.get(expert, rows.file, chosen, make, self.precisions.of(role))

    def embed_rows(self, expert: str, task: str, role: str, cuts: Cuts) -> Tensor:
        """Compute embeddings of some of a role's rows, in the order of the rows."""
        coding = torch.zeros(1, len(self.tasks), 1)
        weights = self.pipeline.weights(
            coding=coding if expert == BASE else one_hot(self.tasks, expert), own=True
        )
        return self.outputs(self.of_member(weights, expert), task, role, cuts)

    def outputs(self, weights: Weights, task: str, role: str, cuts: Cuts) -> Tensor:
        """Outputs of one model for some of a role's rows: float32, in the order of the rows."""
        cut = (self.batch(task, role, part) for part in cuts.parts)
        with self.filling:
            return cuts.joined(z.float().cpu() for z in self.pipeline.embed(weights, cut))

    def logits_of(self, expert: str, task: str, role: str) -> Tensor:
        """Logits [N, C] of one expert, or of the base."""
        embedded, head = self.embedded(expert, task, role), self.task_heads[task]
        return torch.cat([head.logits(embedded[rows]) for rows in batches(len(embedded))])

    def entropies_of(self, expert: str, task: str, role: str) -> Tensor | None:
        """Entropy [N] of one expert's predictions, or the base's, where the task's head has another
        than that of its logits; else None."""
        head = self.task_heads[task]
        if not isinstance(head, AnswerHead) or head.objective == "answers":
            return None
        return head.entropy(self.embedded(expert, task, role))

    def predicted_of(self, expert: str, task: str, role: str) -> Predicted:
        """Predictions of one expert, or of the base."""
        embedded = self.embedded(expert, task, role)
        cuts = Cuts(list(batches(len(embedded))))
        return self.headed(task, (embedded[rows] for rows in cuts.parts), cuts)

    def headed(self, task: str, outputs: Iterable[Tensor], cuts: Cuts) -> Predicted:
        """Outputs of batches, one by one, through a task's head; in the order of the rows."""
        return cut_back([self.read(task, output) for output in outputs], cuts)

    def read(self, task: str, output: Tensor) -> Predicted:
        """Outputs of some rows through a task's head, on the CPU."""
        head = self.head_on(task, output.device)
        written = head.written(output).cpu() if isinstance(head, AnswerHead) else None
        return Predicted(head.logits(output.float()).cpu(), written)

    def head_on(self, task: str, device: torch.device) -> Head:
        """A task's head on a device, where it is kept."""
        if (task, device) not in self.moved_heads:
            self.moved_heads[task, device] = self.task_heads[task].to(device)
        return self.moved_heads[task, device]

    def cuts(self, task: str, role: str, size: int = BATCH, at: Tensor | None = None) -> Cuts:
        """Batches of at most `size` of a role's rows, for evaluation. See `cut_rows`.

        `at`: rows of the role; None: all.
        """
        rows = self.data[task].rows[role]
        if rows.file not in self.lengths:
            self.lengths[rows.file] = open_lengths(rows.file)
        lengths = self.lengths[rows.file]
        if lengths is not None and rows.indices is not None:
            lengths = lengths[rows.indices]
        if lengths is not None and at is not None:
            lengths = lengths[at.numpy()]
        return cut_rows(self.size(task, role) if at is None else len(at), lengths, at, size)

    def size(self, task: str, role: str) -> int:
        """Number of rows of a task in a role."""
        rows = self.data[task].rows[role]
        return len(self.open(rows.file)) if rows.indices is None else len(rows.indices)

    def batch(self, task: str, role: str, part: slice | Tensor) -> Batch:
        """A batch of a task's rows, as row numbers of its file."""
        rows = self.data[task].rows[role]
        at: NDArray[np.int64] = (
            np.arange(part.start, part.stop) if isinstance(part, slice) else part.numpy()
        )
        there = at if rows.indices is None else rows.indices[at]
        return Batch(((task, rows.file, there),), precision=self.precisions.of(role))

    def labels(self, task: str, role: str) -> Tensor:
        """Labels of a task's rows, int64 [N]."""
        rows = self.data[task].rows[role]
        labels = self.open(rows.file)
        return labels if rows.indices is None else labels[torch.from_numpy(rows.indices)]

    def features(self, task: str, role: str, extractor: str) -> Tensor:
        """Features of a task's rows by an extractor: float32 [N, d].

        Raises:
            InputError: the features were not prepared.
        """
        rows = self.data[task].rows[role]
        if extractor not in rows.features:
            raise InputError(f"task {task!r}: no features of extractor {extractor!r} on {role}")
        features = open_features(rows.features[extractor])
        return features if rows.indices is None else features[torch.from_numpy(rows.indices)]

    def open(self, path: Path) -> Tensor:
        """Labels of a file of prepared rows; cached."""
        if path not in self.opened:
            self.opened[path] = open_labels(path)
        return self.opened[path]


def completed(
    runner: ModelRunner, task: str, role: str, found: Predicted, embed: Embed
) -> Predicted:
    """Predictions with the class that rows write, where the tree of answers left it open.

    Greedy decoding, token by token: each pass reads a row and all tokens that it has written so
    far. Shards keep nothing between passes, so one that died and came back goes on with the next
    token. A row is given up as soon as its text can be no answer any more, mostly after one token.

    Args:
        runner: has the task's rows and head.
        task: of the rows.
        role: of the rows.
        found: predictions for all rows of the task.
        embed: runs the model that made them.
    """
    head = runner.task_heads[task]
    if found.written is None or not isinstance(head, AnswerHead):
        return found
    written, texts = found.written.clone(), texts_of(head)
    rows = (written == NO_CLASS).nonzero().flatten()
    prefix = torch.zeros(len(rows), 0, dtype=torch.int64)
    for _ in range(LONGEST):
        if not len(rows):
            break
        cut = list(batches(len(rows), SAMPLES))
        given = (
            (rows[at], replace(runner.batch(task, role, rows[at]), prefix=prefix[at])) for at in cut
        )
        with runner.filling:
            tokens = torch.cat([output.cpu() for output in embed(given)]).to(torch.int64)
        prefix = torch.cat([prefix, tokens], dim=1)
        classes = [judged(text, texts, head) for text in prefix.tolist()]
        going = torch.tensor([each is None for each in classes], dtype=torch.bool)
        written[rows] = torch.tensor([NO_CLASS if each is None else each for each in classes])
        rows, prefix = rows[going], prefix[going]
    return replace(found, written=written)
