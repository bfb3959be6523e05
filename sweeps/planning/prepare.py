"""Check a sweep file against checkpoints, tasks, splits, memory and disk; nothing is started.

Reads no weight and no image; `sweeps plan` prints the result, `sweeps run` uses it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actors.cluster.measured_memory import with_measured
from actors.cluster.planner import Plan, Resources, gigabytes, plan
from actors.data.task import Place, Role, Splits, Task, assign, open_task
from actors.experts.prepare_data import MEASURED
from actors.experts.prepare_data import ROLES as ALL_ROLES
from actors.files.cache_dir import cache_dir
from actors.pool.pool import Pool, open_pool
from actors.pool.vectors_low_rank import check_adapters
from fusion.errors import InputError
from sweeps.cluster.ray_connection import narrowed
from sweeps.planning.data_checks import (
    check_batch_norm,
    check_data,
    check_deltas,
    check_device,
    check_extractors,
    check_offers,
    check_shifts,
    check_trials,
    check_words,
)
from sweeps.planning.dry_run import dry_run
from sweeps.planning.estimates import shifted_bytes
from sweeps.planning.learning_needs import LearningNeeds, needs_of
from sweeps.planning.prepared import Prepared, load_of, roles_of
from sweeps.planning.provenance import check_ancestry
from sweeps.planning.shift_data import open_shifts
from sweeps.planning.statistics_cost import rows_at, statistics_costs
from sweeps.spec.reference_methods import completed
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.text_defaults import for_texts


def prepare(spec: SweepSpec, outputs: Path, resources: Resources) -> Prepared:
    """Check a validated sweep file against checkpoints, data, memory and disk.

    Raises:
            InputError: an unusable checkpoint, dataset or split, or too little memory or disk.
    """
    asked = frozenset((*spec.methods, *spec.references))
    spec = completed(spec)  # before any property of the methods is read
    check_trials(spec)
    pool = open_pool(spec.pool.base, spec.pool.experts, spec.references)
    pool = replace(pool, deltas=spec.placement.delta_dtype)
    check_offers(spec, pool)
    check_deltas(spec, pool)
    if spec.placement.weights == "factored":
        check_adapters(pool)
    inputs = pool.family.inputs(pool.base)
    if inputs.kind == "text":
        spec = for_texts(spec)
    otherwise = otherwise_prepared(pool, spec.pool.preprocessing == "base")
    splits = Splits(**spec.splits.model_dump())
    given = pool.family.own_heads(pool.base, pool.experts)
    given |= {name: task.head for name, task in spec.tasks.items() if task.head is not None}
    with named_by_experts(spec):
        tasks = {
            name: open_task(replace(task.source(name), head=given.get(name)), inputs.kind)
            for name, task in spec.tasks.items()
        }
    heads = pool.family.check_heads(pool.base, tasks)
    check_ancestry(pool, tasks)
    needs = needs_of(spec, pool.tasks, pool.groups)
    if check_batch_norm(spec, pool):
        needs = replace(needs, fits=True)
    check_extractors(needs, inputs)
    places = {
        name: read_places(task, spec, splits, roles_of(needs)) for name, task in tasks.items()
    }
    sources, role_rows = set(), dict.fromkeys(roles_of(needs), 0)
    for name, task in tasks.items():
        for role, place in places[name].items():
            sources.add((name, place.split))
            role_rows[role] += rows_at(task, place, splits)
    images = sum(tasks[name].splits[split] for name, split in sources)
    sizes = [inputs.row.nbytes, *(e.inputs.row.nbytes for e in needs.extractors.values())]
    row_bytes = sum(images * size for size in sizes)
    check_disk(outputs, 10**7)
    dry_run(spec, pool)
    check_words(pool, tasks)
    check_data(spec, tasks, places, splits)
    placement = arrange(spec, pool, needs, resources)
    check_device(spec.placement, placement.device)
    others = open_shifts(spec.shifts, spec.splits.report, tasks)
    check_shifts(spec, inputs, others)
    found = Prepared(
        spec, pool, tasks, splits, inputs, placement, role_rows, images, row_bytes, needs,
        others,
        heads,
        otherwise,
        asked,
    )  # fmt: skip
    statistics = sum(each.disk for each in statistics_costs(spec, pool).values())
    check_disk(cache_dir(), row_bytes + shifted_bytes(found) + statistics)
    return found


@contextmanager
def named_by_experts(spec: SweepSpec) -> Iterator[None]:
    """Say of a data set that cannot be opened that it has its name from an expert, where the sweep
    file gives no tasks."""
    try:
        yield
    except InputError as error:
        if "tasks" in spec.model_fields_set:
            raise
        raise InputError(
            f"{error}; the sweep file has no `tasks`, so each expert's name is taken for a data"
            " set: give tasks: {<name>: {dataset: …}}"
        ) from None


def read_places(
    task: Task, spec: SweepSpec, splits: Splits, read: tuple[Role, ...]
) -> dict[Role, Place]:
    """Split and part of a task's rows, for the roles that are read.

    Raises:
        InputError: see `assign`.
    """
    roles = MEASURED if task.name in spec.unseen else ALL_ROLES
    spelled = spec.splits.select_spelled
    places = assign(task, splits, select_spelled=spelled, roles=roles)
    return {role: place for role, place in places.items() if role in read}


def otherwise_prepared(pool: Pool, accepted: bool) -> dict[str, str]:
    """Expert or reference -> how its preprocessing differs from the base's.

    Args:
        pool: an opened pool.
        accepted: whether the base's preprocessing may be used in spite of differences.

    Raises:
        InputError: preprocessing that differs and is not accepted.
    """
    found, kind = {}, pool.family.inputs(pool.base).kind
    for name, expert in {**pool.experts, **pool.references}.items():
        try:
            said = pool.family.difference(pool.base.folder, expert.folder)
        except InputError as error:
            if not accepted:
                raise InputError(f"{expert.name}: {error}") from None
            said = str(error)
        if said is not None and not accepted:
            raise InputError(
                f"{expert.name}: {said}; all {kind}s are prepared as the base's file says: make"
                " them equal, or accept that with `pool.preprocessing: base`"
            )
        if said is not None:
            found[name] = said
    return found


def arrange(
    spec: SweepSpec,
    pool: Pool,
    needs: LearningNeeds,
    resources: Resources,
    shards: int | None = None,
) -> Plan:
    """Plan the placement on these resources; `shards`: number of shards of a running fleet.

    Raises:
        InputError: it does not fit; suggests changes.
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
    # Ray may place a shard without places anywhere.
    seeing = tuple(node.id for node in resources.nodes)
    return replace(found, places=(seeing,) * found.shards)


def check_disk(place: Path, needed: int) -> None:
    """Raise InputError if a folder's file system lacks the space."""
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(f"{place}: {gigabytes(needed)} of disk needed, {gigabytes(free)} free")
