"""Pipeline of shards as one model: sends requests to shards in the right order.

The same code serves shards in this process and shards that are actors: a *link* calls a shard and
fetches a result. The result of one shard is passed to the next in the link's form (on Ray: an
object reference), so activations never pass through this process.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.cluster.metrics import count
from actors.shards.messages import Batch, Parcel, Weights, in_precision
from actors.shards.requests import (
    Backward,
    BlockGram,
    Finish,
    Forward,
    MergeBlock,
    RunCoded,
    RunningForward,
    RunningFound,
    RunResident,
    RunRouted,
    ShardRequest,
    Survey,
)
from actors.shards.shard import gradient_of
from fusion.methods.learned.steps import Gradient
from fusion.registry import METHODS
from fusion.task_vectors.gram import Gram, merged_grams
from fusion.task_vectors.sparsify import Trim


class Link(Protocol):
    """Calls shards and fetches their results."""

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """Send a request; returns its pending result, or a tuple if it has several.

        `given`: pending results of earlier calls, or values.
        """
        ...

    def get(self, pending: Any) -> Any:
        """Wait for a pending result."""
        ...

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """Store tensors so that many calls can pass them without copying."""
        ...


class LocalLink:
    """Link to shards in this process: every call runs at once."""

    def call(self, shard: Any, request: ShardRequest, *given: Any) -> Any:
        """The result."""
        return request.run(shard, *given)

    def get(self, pending: Any) -> Any:
        """The result itself."""
        return pending

    def put(self, tensors: Mapping[str, Tensor]) -> Parcel:
        """The tensors themselves."""
        return Parcel(tensors)


@dataclass(frozen=True)
class Step:
    """One step of a 1F1B schedule."""

    stage: int
    backward: bool
    """For the last stage, a backward step includes its forward pass."""
    item: int


def one_forward_one_backward(stages: int, items: int) -> Iterator[Step]:
    """1F1B schedule: a stage runs forward once for each stage behind it, then alternates.

    A stage keeps at most `stages − stage` forward passes, for any number of items. Every step comes
    after the steps whose results it needs.

    >>> [("FB"[s.backward], s.stage, s.item) for s in one_forward_one_backward(2, 2)]
    [('F', 0, 0), ('F', 0, 1), ('B', 1, 0), ('B', 1, 1), ('B', 0, 0), ('B', 0, 1)]
    """
    queues = [deque(stage_steps(stage, stages, items)) for stage in range(stages)]
    done: set[tuple[int, bool, int]] = set()
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue and ready(queue[0], stages, done):
                step = queue.popleft()
                done.add((stage, step.backward, step.item))
                yield step


def stage_steps(stage: int, stages: int, items: int) -> Iterator[Step]:
    """Steps of one stage, in order."""
    if stage == stages - 1:
        yield from (Step(stage, True, item) for item in range(items))
        return
    ahead = min(stages - stage, items)
    yield from (Step(stage, False, item) for item in range(ahead))
    for item in range(items):
        yield Step(stage, True, item)
        if ahead + item < items:
            yield Step(stage, False, ahead + item)


def ready(step: Step, stages: int, done: set[tuple[int, bool, int]]) -> bool:
    """Whether the inputs of a step have been requested."""
    last = step.stage == stages - 1
    if step.backward and not last:
        return (step.stage + 1, True, step.item) in done
    return step.stage == 0 or (step.stage - 1, False, step.item) in done


@dataclass(frozen=True)
class Passes:
    """The calls of a 1F1B run; each takes and returns pending activations or gradients."""

    forward: Callable[[int, int, Any], Any]
    """(stage, item, activations) -> activations."""
    backward: Callable[[int, int, Any, Any], Any]
    """(stage, item, activations of its forward pass, gradient) -> gradient."""
    finish: Callable[[int, Any], Any]
    """(item, activations) -> gradient: both passes of the last stage."""


def run_1f1b(stages: int, items: Sequence[Any], passes: Passes) -> list[Any]:
    """Submit all passes of all items in 1F1B order, without waiting.

    Args:
        stages: number of shards.
        items: inputs of the first stage.
        passes: the calls.

    Returns:
        The pending gradients of the first stage, in the order of submission.
    """
    inputs: dict[tuple[int, int], Any] = {(0, i): item for i, item in enumerate(items)}
    back: dict[int, Any] = {}
    ends = []
    for step in one_forward_one_backward(stages, len(items)):
        stage, item = step.stage, step.item
        if stage == stages - 1:
            back[item] = passes.finish(item, inputs.pop((stage, item)))
        elif step.backward:
            back[item] = passes.backward(stage, item, inputs.pop((stage, item)), back[item])
        else:
            inputs[stage + 1, item] = passes.forward(stage, item, inputs[stage, item])
        if stage == 0 and step.backward:
            ends.append(back[item])
    return ends


SURVEYS = 64
"""Results of surveys that are kept: a few numbers for each task, at most for each tensor too."""


def survey_key(weights: Weights) -> str:
    """Text of all that the result of a survey depends on, beside the task vectors."""
    if weights.method is None:
        return repr(("trim", weights.trim.density))
    row = METHODS[weights.method]
    params = sorted(row.survey_params(weights.params or {}).items())
    return repr((weights.method, params, weights.statistics))


class Pipeline:
    """Shards that make up one model, in order."""

    def __init__(
        self,
        shards: Sequence[Any],
        names: Sequence[Sequence[str]],
        groups: Sequence[str],
        link: Link,
    ) -> None:
        """`names`: fused tensors of each shard; `groups`: those of the whole model."""
        self.shards, self.link = list(shards), link
        self.groups = tuple(groups)
        order = [name for block in names for name in block]
        held = [[at for at, name in enumerate(order) if name == group] for group in groups]
        self.order = torch.tensor([at[-1] for at in held])
        """Group -> its column among the columns of all shards; for a tied tensor, the last."""
        self.surveys: OrderedDict[str, Any] = OrderedDict()
        """Results of the last surveys, by all that they depend on; at most `SURVEYS`."""
        self.surveying = threading.Lock()
        """Held during a survey, so that a second caller of the same one waits for its result."""
        self.ties = [(group, at[-2::-1]) for group, at in enumerate(held) if len(at) > 1]
        """(group, its other columns): the copies of a tensor that is tied across shards."""

    def weights(
        self,
        method: str | None = None,
        params: Mapping[str, Any] | None = None,
        coding: Tensor | None = None,
        trim: Trim | None = None,
        statistics: tuple[str, ...] = (),
        learned: Parcel | None = None,
        own: bool = False,
        task: str | None = None,
        reference: str | None = None,
    ) -> Weights:
        """Weights for passes, after the survey over all shards if one is needed.

        A survey is run once for all weights with the same parameters of the survey: a grid of λ and
        density surveys once for each density.
        """
        key, trim = uuid.uuid4().hex, trim or Trim()
        made = Weights(
            key, method, params, coding, trim, None, statistics, learned, task, own, reference
        )
        surveyed = METHODS[method].surveyed if method is not None else made.trim.elect
        return replace(made, survey=self.surveyed(made)) if surveyed else made

    def surveyed(self, weights: Weights) -> Any:
        """The result of a survey, from the cache or run now."""
        key = survey_key(weights)
        with self.surveying:
            found = key in self.surveys
            count("cache", cache="survey", found="hit" if found else "miss")
            if not found:
                self.surveys[key] = self.survey(weights)
                if len(self.surveys) > SURVEYS:
                    self.surveys.popitem(last=False)
            self.surveys.move_to_end(key)
            return self.surveys[key]

    def survey(self, weights: Weights) -> Any:
        """Run a survey over all shards in lockstep."""
        answers: list[Tensor] = []
        while True:
            asked = [self.link.call(shard, Survey(weights, answers)) for shard in self.shards]
            heard = [self.link.get(each) for each in asked]
            if heard[0][0]:
                return heard[0][1]
            total = heard[0][1]
            for _, part in heard[1:]:
                total = total + part.to(total.device)
            answers = [*answers, total]

    def merge(self, weights: Weights) -> dict[str, Tensor]:
        """The merged tensors of the whole model, on the CPU, in the order of `groups`."""
        parts = [self.link.call(shard, MergeBlock(weights)) for shard in self.shards]
        found = {k: v.cpu() for part in parts for k, v in self.link.get(part).items()}
        # Shards follow the chain of segments, in which a T5's decoder is not where its file has it.
        ordered = iter([group for group in self.groups if group in found])
        grouped = set(self.groups)
        names = [next(ordered) if name in grouped else name for name in found]
        return {name: found[name] for name in names}

    def gram(self) -> Gram:
        """Inner products of the task vectors of the whole model."""
        parts = [self.link.call(shard, BlockGram()) for shard in self.shards]
        return merged_grams([self.link.get(part) for part in parts])

    def measure_running(self, weights: Weights, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Running statistics of a merged model's batch norm over these batches."""
        for at, batch in enumerate(batches):
            activations: Any = batch
            for shard in self.shards:
                activations = self.link.call(shard, RunningForward(at, weights), activations)
            self.link.get(activations)
        request = RunningFound(weights.key, len(batches))
        parts = [self.link.call(shard, request) for shard in self.shards]
        return {name: value for part in parts for name, value in self.link.get(part).items()}

    def embed(self, weights: Weights, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Embeddings [B, D] of each batch by the resident model with `weights` merged into it."""
        return self.flow(RunResident, ((batch, weights) for batch in batches))

    def embed_coded(self, batches: Iterable[tuple[Batch, Weights]]) -> Iterator[Tensor]:
        """Embeddings of each batch by layers merged with the batch's own coding."""
        return self.flow(RunCoded, batches)

    def embed_routed(self, weights: Weights, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Embeddings of each batch by blocks with the routers in `weights`."""
        return self.flow(RunRouted, ((batch, weights) for batch in batches))

    def flow(
        self,
        request: Callable[[Weights], ShardRequest],
        batches: Iterable[tuple[Batch, Weights]],
    ) -> Iterator[Tensor]:
        """Run batches through all shards in order, a few at the same time."""
        flying: deque[tuple[int, Any]] = deque()

        def landed() -> Tensor:
            size, activations = flying.popleft()
            embedding: Tensor = self.link.get(activations)["output"]
            count("images", size, use="forward")
            return embedding

        for batch, weights in batches:
            activations: Any = batch
            given = in_precision(weights, batch)
            for shard in self.shards:
                activations = self.link.call(shard, request(given), activations)
            flying.append((batch.size, activations))
            if len(flying) > len(self.shards):
                yield landed()
        while flying:
            yield landed()

    def summed(self, columns: Tensor) -> Tensor:
        """Columns [M, T, …] of all shards -> [M, T, G]; columns of tied tensors are summed."""
        found = columns[:, :, self.order]
        for group, others in self.ties:
            for at in others:  # from the last to the first, as within a shard
                found[:, :, group] += columns[:, :, at]
        return found

    def gradients(self, micro_batches: Sequence[tuple[Batch, Weights]]) -> list[Gradient]:
        """Losses and coding gradients of each micro-batch; all are submitted before waiting."""
        call, shards, last = self.link.call, self.shards, len(self.shards) - 1
        micro_batches = [(batch, in_precision(weights, batch)) for batch, weights in micro_batches]
        run = uuid.uuid4().hex
        losses: dict[int, Any] = {}
        parts: dict[tuple[int, int], Any] = {}

        def forward(stage: int, item: int, activations: Any) -> Any:
            _, weights = micro_batches[item]
            return call(shards[stage], Forward(f"{run}-{item}", weights), activations)

        def backward(stage: int, item: int, activations: Any, back: Any) -> Any:
            _, weights = micro_batches[item]
            request = Backward(f"{run}-{item}", weights)
            parts[stage, item], back = call(shards[stage], request, activations, back)
            return back

        def finish(item: int, activations: Any) -> Any:
            batch, weights = micro_batches[item]
            request = Finish(weights, batch)
            losses[item], parts[last, item], back = call(shards[last], request, activations)
            return back

        run_1f1b(
            len(shards), [batch for batch, _ in micro_batches], Passes(forward, backward, finish)
        )
        found = []
        for item, (batch, weights) in enumerate(micro_batches):
            columns = [self.link.get(parts[stage, item]) for stage in range(last + 1)]
            whole = self.summed(torch.cat(columns, dim=2))
            assert weights.coding is not None
            grouped = weights.coding.shape[2] == len(self.groups)
            lost, tilt = self.link.get(losses[item])
            found.append(gradient_of(lost, whole, grouped, tilt))
            count("images", batch.size, use="learn")
        return found
