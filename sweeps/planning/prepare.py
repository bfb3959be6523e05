"""Everything that is checked before anything is started: headers, tasks, splits, memory, disk.

No weight and no image is read here; `sweeps plan` prints what this finds, `sweeps run` acts on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from actors.checkpoints.sources import cache_dir
from actors.cluster.measured_memory import with_measured
from actors.cluster.planner import Load, Plan, Resources, gigabytes, plan
from actors.data.task import Place, Role, Splits, Task, TaskSource, assign, open_task
from actors.experts.embedding_cache import EmbeddingCache, embedding_cache
from actors.experts.local import BATCH
from actors.experts.prepare_data import MEASURED
from actors.experts.prepare_data import ROLES as ALL_ROLES
from actors.experts.routed import SAMPLES
from actors.families.clip.preprocessor_config import Preprocess, difference, read_preprocess
from actors.families.clip.segments import clip_segments
from actors.families.clip.zero_shot_heads import check_heads, head_fingerprints
from actors.files.fingerprint import fingerprint, software
from actors.pool.pool import Pool, open_pool
from actors.pool.vectors_low_rank import check_adapters, factor_bytes
from fusion.errors import InputError
from fusion.registry import METHODS, one_a_sample
from sweeps.cluster.ray_connection import narrowed
from sweeps.planning.data_checks import check_data, check_shifts, check_trials, check_words
from sweeps.planning.dry_run import rehearse
from sweeps.planning.estimates import rows_at, shifted_bytes, taken
from sweeps.planning.learning_needs import Needs, needs_of
from sweeps.planning.provenance import check_ancestry
from sweeps.planning.shift_data import open_shifts, shift_fingerprint
from sweeps.spec.reference_methods import completed
from sweeps.spec.sweep import PlacementSpec, SweepSpec
from sweeps.spec.trial_key import Context

ROLES: tuple[Role, ...] = ("select", "report")


@dataclass(frozen=True)
class Prepared:
    """A sweep that can start."""

    spec: SweepSpec
    """With all methods that the comparison will have: what runs is what is in it."""
    pool: Pool
    tasks: Mapping[str, Task]
    splits: Splits
    preprocess: Preprocess
    plan: Plan
    role_rows: Mapping[Role, int]
    """Rows of all tasks in a role; of a carved part to within rounding by class."""
    images: int
    """Rows of all source splits that the sweep reads."""
    pixel_bytes: int
    """Disk that their prepared form takes, for the model and for every extractor."""
    needs: Needs
    """Of the methods that learn."""
    others: Mapping[tuple[str, str], Task] = field(default_factory=dict)
    """(shift set, task) -> the other data set that it is."""
    heads: Mapping[str, Path] = field(default_factory=dict)
    """Task -> the head file that it names."""
    otherwise: Mapping[str, str] = field(default_factory=dict)
    """Expert -> how its own preprocessing differs from the base's, which is used."""

    @property
    def load(self) -> Load:
        """What has to be placed."""
        return load_of(self.spec, self.pool, self.needs)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles whose images are read."""
        return roles_of(self.needs)

    def context(self) -> Context:
        """What every trial's result depends on besides its recipe."""
        heads = head_fingerprints(self.pool.base, self.tasks)
        common = fingerprint(
            "context-1",
            software("torch", "transformers"),
            self.pool.base.fingerprint,
            {name: expert.fingerprint for name, expert in self.pool.experts.items()},
            self.preprocess.fingerprint,
            {
                name: [task.fingerprint, list(task.classnames), heads[name]]
                for name, task in self.tasks.items()
            },
            vars(self.splits),
            self.plan.device,
            decisive(self.spec.placement),
            self.spec.seed,
            list(self.spec.unseen),
        )
        extractors = {k: e.fingerprint for k, e in self.needs.extractors.items()}
        shift = self.spec.adapt_on_shift
        under = None if shift is None else shift_fingerprint(self.spec.shifts, shift, self.others)
        return Context(common, extractors, self.needs.gates, under)

    def embeddings(self) -> EmbeddingCache:
        """Where this pool's expert embeddings are kept."""
        numbers = decisive(self.spec.placement)
        return embedding_cache(cache_dir(), self.pool, self.plan.device, numbers)


WHERE = frozenset({"replicas", "shards", "gpus", "labels", "transport", "device"})
"""Fields of `placement` that say where numbers are computed, and not what they are; of the device
its kind counts, which the plan knows."""


def decisive(placement: PlacementSpec) -> dict[str, object]:
    """The fields of `placement` that numbers depend on: all but `WHERE`.

    Task vectors in memory and in files are equal to the bit; those from factors are not.

    >>> decisive(PlacementSpec(weights="files", replicas=2))
    {'weights': 'memory', 'dtype': 'float32', 'result_dtype': 'base'}
    """
    told = placement.model_dump(mode="json", exclude=set(WHERE))
    return {**told, "weights": "memory" if told["weights"] == "files" else told["weights"]}


def prepare(spec: SweepSpec, outputs: Path, resources: Resources) -> Prepared:
    """Check a validated spec against the world.

    Raises:
        InputError: a checkpoint, dataset, split, memory or disk that will not do.
    """
    spec = completed(spec)  # before anything is asked of the methods
    check_trials(spec)
    pool = open_pool(spec.pool.base, spec.pool.experts)
    if spec.placement.weights == "factored":
        check_adapters(pool)
    preprocess = read_preprocess(pool.base.folder)
    otherwise = otherwise_prepared(pool, spec.pool.preprocessing == "base")
    splits = Splits(**spec.splits.model_dump())
    tasks = {
        name: open_task(
            TaskSource(name, t.dataset, t.image, t.label, t.templates, t.classnames, t.head)
        )
        for name, t in spec.tasks.items()
    }
    heads = check_heads(pool.base, tasks)
    check_ancestry(pool, tasks)
    needs = needs_of(spec, pool.tasks, pool.groups)
    places = {
        name: read_places(task, spec, splits, roles_of(needs)) for name, task in tasks.items()
    }
    sources, role_rows = set(), dict.fromkeys(roles_of(needs), 0)
    for name, task in tasks.items():
        for role, place in places[name].items():
            sources.add((name, place.split))
            role_rows[role] += rows_at(task, place, splits)
    images = sum(tasks[name].splits[split] for name, split in sources)
    sizes = [preprocess.shape, *(e.preprocess.shape for e in needs.extractors.values())]
    pixel_bytes = sum(images * 3 * height * width for height, width in sizes)
    check_disk(outputs, 10**7)
    rehearse(spec, pool)
    check_words(pool, tasks, preprocess)
    check_data(spec, tasks, places, splits)
    placement = arrange(spec, pool, needs, resources)
    others = open_shifts(spec.shifts, spec.splits.report, tasks)
    check_shifts(spec, preprocess, others)
    found = Prepared(
        spec, pool, tasks, splits, preprocess, placement, role_rows, images, pixel_bytes, needs,
        others,
        heads,
        otherwise,
    )  # fmt: skip
    statistics = sum(each.disk for each in taken(spec, pool).values())
    check_disk(cache_dir(), pixel_bytes + shifted_bytes(found) + statistics)
    return found


def read_places(
    task: Task, spec: SweepSpec, splits: Splits, read: tuple[Role, ...]
) -> dict[Role, Place]:
    """Where a task's rows are, of the roles that are read.

    Raises:
        InputError: see `assign`.
    """
    roles = MEASURED if task.name in spec.unseen else ALL_ROLES
    spelled = spec.splits.select_spelled
    places = assign(task, splits, select_spelled=spelled, roles=roles)
    return {role: place for role, place in places.items() if role in read}


def otherwise_prepared(pool: Pool, accepted: bool) -> dict[str, str]:
    """Expert -> how its own preprocessing differs from the base's.

    Args:
        pool: an opened one.
        accepted: whether the base's may be used all the same.

    Raises:
        InputError: one that differs, where that is not accepted.
    """
    found = {}
    for name, expert in pool.experts.items():
        try:
            said = difference(pool.base.folder, expert.folder)
        except InputError as error:
            if not accepted:
                raise InputError(f"{expert.name}: {error}") from None
            said = str(error)
        if said is not None and not accepted:
            raise InputError(
                f"{expert.name}: {said}; all images are prepared as the base's file says: make"
                " them equal, or accept that with `pool.preprocessing: base`"
            )
        if said is not None:
            found[name] = said
    return found


def arrange(
    spec: SweepSpec, pool: Pool, needs: Needs, resources: Resources, shards: int | None = None
) -> Plan:
    """The plan for these resources; `shards`: of a fleet that stands already.

    Raises:
        InputError: it does not fit; says what would do.
    """
    wish, everywhere = spec.placement, len(resources.nodes)
    if wish.weights == "files":
        resources = narrowed(pool, resources)
    found = plan(
        with_measured(load_of(spec, pool, needs), cache_dir()),
        resources,
        replicas=wish.replicas,
        shards=shards or wish.shards,
        device=wish.device,
        gpus=wish.gpus,
        labels=wish.labels,
    )
    if found.places or len(resources.nodes) == everywhere:
        return found
    # To Ray, a shard without places may go anywhere.
    seeing = tuple(node.id for node in resources.nodes)
    return replace(found, places=(seeing,) * found.shards)


def roles_of(needs: Needs) -> tuple[Role, ...]:
    """Select and report, and fit where some method learns from it."""
    return ("fit", *ROLES) if needs.fits or "fit" in needs.adapts_on else ROLES


def load_of(spec: SweepSpec, pool: Pool, needs: Needs) -> Load:
    """What has to be placed."""
    fields, itemsize = pool.base.fields, getattr(torch, spec.placement.dtype).itemsize
    chain = clip_segments(pool.base)
    segments = tuple(4 * segment.numel for segment in chain)
    factors: tuple[int, ...] = ()
    if all(expert.factors for expert in pool.experts.values()):
        factors = tuple(factor_bytes(pool, segment.names.values()) for segment in chain)
    gathered = taken(spec, pool).values()
    learned = max(int(needs.kept * sum(segments)), *(each.memory for each in gathered), 0)
    images = max(needs.images, *(each.images for each in gathered), 0)
    forward, backward = activations(fields, sampled=needs.sampled)
    return Load(
        segments=segments,
        experts=len(pool.experts),
        compute_itemsize=itemsize,
        forward_bytes=itemsize * BATCH * forward,
        training_bytes=itemsize * images * backward + learned,
        transformed=needs.transformed,
        filed=spec.placement.weights == "files",
        factors=factors,
        factored=spec.placement.weights == "factored",
        largest=4 * max(pool.base.tensors[name].numel for name in pool.names),
        sampled=SAMPLES if any(one_a_sample(METHODS[name]) for name in spec.methods) else 0,
    )


def activations(vision: Mapping[str, int], *, sampled: bool = False) -> tuple[int, int]:
    """Elements of activations an image: (peak of a forward pass, kept for a backward pass).

    Forward counts, for one block at a time, the residual stream, q, k, v and the MLP's hidden
    layer; backward what autograd keeps of every block: 8 times the width, and 3 times the hidden
    layer, of which quick GELU alone keeps its input, a sigmoid and their product. Merged layers
    whose rows are of several models (`sampled`) keep two more inputs. Attention scores are never
    there as a whole (scaled dot product attention).
    """
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    width, hidden = vision["hidden_size"], vision["intermediate_size"]
    block = tokens * (5 * width + hidden)
    kept = (10 if sampled else 8) * width + 3 * hidden
    return block, tokens * kept * vision["num_hidden_layers"]


def check_disk(place: Path, needed: int) -> None:
    """Raise InputError where a folder's file system lacks the room."""
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(f"{place}: {gigabytes(needed)} of disk needed, {gigabytes(free)} free")
