"""A sweep that passed all checks: `plan` prints it, `run` acts on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from actors.cluster.planner import Load, Plan
from actors.cluster.segment_costs import Effort, segment_cost
from actors.data.protocol import Inputs
from actors.data.task import Role, Splits, Task
from actors.data.task_rows import BATCH, SAMPLES
from actors.experts.embedding_cache import EmbeddingCache, embedding_cache
from actors.families.protocol import Segment
from actors.files.cache_dir import cache_dir
from actors.files.fingerprint import fingerprint, software
from actors.pool.pool import Pool
from actors.pool.running import VERSION, running_names
from actors.pool.vectors_low_rank import factor_bytes
from fusion.registry import METHODS
from sweeps.planning.learning_needs import LearningNeeds
from sweeps.planning.shift_data import shift_fingerprint
from sweeps.planning.statistics_cost import statistics_costs
from sweeps.spec.sweep import PlacementSpec, SweepSpec
from sweeps.spec.trial_key import Context

ROLES: tuple[Role, ...] = ("select", "report")


@dataclass(frozen=True)
class Prepared:
    """A sweep that passed all checks."""

    spec: SweepSpec
    """The sweep with all methods that the comparison lists; exactly these run."""
    pool: Pool
    tasks: Mapping[str, Task]
    splits: Splits
    inputs: Inputs
    """Preprocessing of the base, for all models."""
    plan: Plan
    role_rows: Mapping[Role, int]
    """Number of rows of all tasks in a role; of a carved part, up to rounding in each class."""
    images: int
    """Number of rows of all source splits that the sweep reads."""
    row_bytes: int
    """Disk bytes of all prepared rows, for the model and for every extractor."""
    needs: LearningNeeds
    """Needs of the methods that learn."""
    others: Mapping[tuple[str, str], Task] = field(default_factory=dict)
    """(shift set, task) -> the other data set used for it."""
    heads: Mapping[str, Path] = field(default_factory=dict)
    """Task -> the head file that it names."""
    otherwise: Mapping[str, str] = field(default_factory=dict)
    """Expert -> difference of its own preprocessing from the base's, which is used."""
    asked: frozenset[str] = frozenset()
    """Methods and finished models that the sweep file lists; all other rows are added unasked."""

    @property
    def load(self) -> Load:
        """Memory needs of the sweep, for the planner."""
        return load_of(self.spec, self.pool, self.needs)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles whose images are read."""
        return roles_of(self.needs)

    def context(self) -> Context:
        """Everything besides its recipe that a trial's result depends on."""
        heads = self.pool.family.head_fingerprints(self.pool.base, self.tasks)
        common = fingerprint(
            "context-1",
            software("torch", "transformers"),
            self.pool.base.fingerprint,
            {name: expert.fingerprint for name, expert in self.pool.experts.items()},
            self.inputs.fingerprint,
            {
                name: [task.fingerprint, list(task.classnames), heads[name]]
                for name, task in self.tasks.items()
            },
            vars(self.splits),
            self.plan.device,
            {**decisive(self.spec.placement), **self.spec.placement.reduced},
            self.spec.seed,
            list(self.spec.unseen),
            *self.batch_norm,
        )
        extractors = {k: e.fingerprint for k, e in self.needs.extractors.items()}
        shift = self.spec.adapt_on_shift
        under = None if shift is None else shift_fingerprint(self.spec.shifts, shift, self.others)
        others = {name: each.fingerprint for name, each in self.pool.references.items()}
        return Context(common, extractors, self.needs.gates, under, others)

    @property
    def batch_norm(self) -> tuple[str, ...]:
        """What running statistics of batch norm depend on; empty: the models have none."""
        return (VERSION, self.spec.batch_norm) if running_names(self.pool) else ()

    def embeddings(self) -> EmbeddingCache:
        """The cache of this pool's expert embeddings."""
        numbers = decisive(self.spec.placement)
        return embedding_cache(cache_dir(), self.pool, self.plan.device, numbers)


WHERE = frozenset({"replicas", "shards", "gpus", "labels", "transport", "device"})
"""Fields of `placement` that do not change results, only where they are computed. The kind of
device does change them; the plan determines it."""


PRECISIONS = frozenset({"precision", "report_precision"})
"""Fields of `placement` for a part of the products each. They are in a trial's key where they are
not fp32, so that a sweep file without them keeps its keys."""


def decisive(placement: PlacementSpec) -> dict[str, object]:
    """The fields of `placement` that decide numbers in any precision: all but `WHERE` and
    `PRECISIONS`.

    Task vectors in memory and in files are equal to the bit; those from factors are not.

    >>> decisive(PlacementSpec(weights="files", replicas=2))
    {'weights': 'memory', 'dtype': 'float32', 'result_dtype': 'base'}
    """
    fields = placement.model_dump(mode="json", exclude={*WHERE, *PRECISIONS, "delta_dtype"})
    weights = "memory" if fields["weights"] == "files" else fields["weights"]
    return {**fields, "weights": weights, **placement.narrow}


def roles_of(needs: LearningNeeds) -> tuple[Role, ...]:
    """Roles that are read: select and report, and fit if a method uses it."""
    return ("fit", *ROLES) if needs.fits or "fit" in needs.adapts_on else ROLES


def load_of(spec: SweepSpec, pool: Pool, needs: LearningNeeds) -> Load:
    """Memory needs of a sweep, for the planner."""
    itemsize = getattr(torch, spec.placement.dtype).itemsize
    deltas = getattr(torch, spec.placement.delta_dtype).itemsize
    chain, layout = pool.family.segments(pool.base), pool.family.layout(pool.base)
    segments = tuple(4 * segment.numel for segment in chain)
    factors: tuple[int, ...] = ()
    factored = spec.placement.weights == "factored"
    if all(expert.factors for expert in pool.experts.values()):
        factors = tuple(factor_bytes(pool, segment.names.values()) for segment in chain)
    gathered = statistics_costs(spec, pool).values()
    learned = max(int(needs.kept * sum(segments)), *(each.memory for each in gathered), 0)
    images = max(needs.images, *(each.images for each in gathered), 0)
    backward = layout.sampled_elements if needs.sampled else layout.training_elements
    outputs = {METHODS[name].output for name in spec.methods}
    return Load(
        segments=segments,
        experts=len(pool.experts),
        delta_itemsize=deltas,
        compute_itemsize=itemsize,
        forward_bytes=itemsize * BATCH * layout.forward_elements,
        training_bytes=itemsize * images * backward + learned,
        stacked_bytes=itemsize * needs.stacked * layout.sampled_elements,
        learned_bytes=learned,
        transformed=needs.transformed,
        filed=spec.placement.weights == "files",
        factors=factors,
        factored=factored,
        largest=4 * max(pool.base.tensors[name].numel for name in pool.names),
        references=sum(member is None for member in pool.members_of.values()),
        sampled=SAMPLES if "model_per_sample" in outputs else 0,
        work=work_of(chain),
        costs=costs_of(chain, len(pool.experts), needs.images, factors if factored else ()),
        half="float16" if "float16" in pool.family.offers(pool.base) else "bfloat16",
    )


def work_of(chain: Sequence[Segment]) -> tuple[float, ...]:
    """Multiplications a row of each segment; empty where some segment does not state its own."""
    stated = [segment.work for segment in chain if segment.work is not None]
    return tuple(stated) if len(stated) == len(chain) else ()


def costs_of(
    chain: Sequence[Segment], experts: int, rows: int, factors: Sequence[int] = ()
) -> tuple[float, ...]:
    """Cost of each segment in a micro-batch; empty where some segment does not state its work.

    Args:
        chain: all segments.
        experts: T.
        rows: of a micro-batch that is learned from; 0: nothing is learned, models are evaluated.
        factors: bytes of all experts' factors, a segment, in float32; empty: dense task vectors.
    """
    batch, found = rows or BATCH, []
    for index, work in enumerate(work_of(chain)):
        part = chain[index]
        elements = batch * part.lookups or part.numel
        kept = factors[index] / 4 if factors else None
        effort = Effort(work, len(set(part.names.values())), elements, kept)
        found.append(segment_cost(effort, batch, experts, rows > 0))
    return tuple(found)
