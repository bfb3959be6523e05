"""Text of `sweeps plan`: placement, memory, data, trials and work of a sweep."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec

from rich.table import Table

from actors.cluster.planner import Plan, gigabytes
from actors.data.task import ACCURACY, Task
from actors.gate_features.extractor import Extractor
from actors.pool.pool import Pool
from actors.training.precision import NO_BF16, has_bf16
from fusion.registry import METHODS
from sweeps.console.number_format import size
from sweeps.planning.estimates import shifted_bytes, shifted_images
from sweeps.planning.learning_needs import RUNGS, batches_of, in_model_points, learning_points
from sweeps.planning.prepared import Prepared
from sweeps.planning.statistics_cost import StatisticsCost, statistics_costs
from sweeps.results.rows.disclosures import under_words
from sweeps.spec.candidates import planned
from sweeps.spec.method import MethodSpec
from sweeps.spec.reference_methods import references
from sweeps.spec.sweep import SplitSpec, SweepSpec
from sweeps.spec.trial_key import races

CACHES = {"image": "pixel cache", "text": "token cache at most"}
"""Kind of data -> what its prepared rows are called."""


def facts(prepared: Prepared) -> list[tuple[str, str]]:
    """Lines about pool, placement, memory and data."""
    spec, pool, plan = prepared.spec, prepared.pool, prepared.plan
    noun = f"{prepared.inputs.kind}s"
    extractors = prepared.needs.extractors.values()
    others = sum(extracted_bytes(each, prepared.images) for each in extractors)
    dtypes = ", ".join(sorted(set(pool.dtypes.values())))
    return [
        ("sweep", f"{spec.name}: select on {spec.splits.select}, report on {spec.splits.report}"),
        (
            "pool",
            f"{len(pool.experts)} experts of {spec.pool.base}: {len(pool.names)} tensors, "
            f"{pool.parameters:,} parameters each ({dtypes} on disk)",
        ),
        *(("reference", line) for line in reference_lines(spec, pool)),
        *([("names", prefixes)] if (prefixes := wrappers(pool)) else []),
        (
            "placement",
            f"{arrangement(plan)}, {plan.threads} thread(s) each, "
            f"forward in {spec.placement.dtype}",
        ),
        *([("precision", reduced)] if (reduced := precision(prepared)) else []),
        *([("racing", raced)] if (raced := racing(spec)) else []),
        *([("transport", lacking)] if (lacking := lacks_direct(prepared)) else []),
        *([("task vectors", kept)] if (kept := stored(prepared)) else []),
        *([("rounding", rounded)] if (rounded := rounding(prepared)) else []),
        *(
            (noun, f"{name}: prepared as the base's file says; its own differs: {said}")
            for name, said in prepared.otherwise.items()
        ),
        *([("nodes", spread(plan))] if len(plan.nodes) > 1 else []),
        ("memory", memory(plan, spec.placement.weights)),
        (
            "data",
            f"{len(prepared.tasks)} tasks, {prepared.images:,} {noun} at "
            f"{prepared.inputs.about}: {size(prepared.row_bytes - others)} of "
            f"{CACHES[prepared.inputs.kind]}",
        ),
        *(("task", line) for task in prepared.tasks.values() for line in task_text(task)),
        *(("shift set", line) for task in prepared.others.values() for line in task_text(task)),
        *(
            ("extractor", extractor_text(each, prepared.images, prepared.inputs.kind))
            for each in extractors
        ),
        *([("shifts", shifted)] if (shifted := shifts(prepared)) else []),
        *(
            ("statistics", f"{name}: {statistics(each)}")
            for name, each in statistics_costs(spec, pool).items()
        ),
        *([("unseen", unseen(spec))] if spec.unseen else []),
        *(
            ("learning", adaptation(role, spec.splits, under_words(spec), noun))
            for role in sorted(prepared.needs.adapts_on)
        ),
    ]


def reference_lines(spec: SweepSpec, pool: Pool) -> list[str]:
    """Lines about finished models: where each is from, and what it takes of a node's memory."""
    taken = size(4 * pool.parameters)
    return [
        f"{name}: {spec.references[name]}: "
        + (f"up to {taken} a node" if member is None else f"the same files as {member}")
        for name, member in pool.members_of.items()
    ]


def lacks_direct(prepared: Prepared) -> str:
    """What `transport: direct` lacks, if that is set and CuPy is missing; else empty."""
    plan, wish = prepared.plan, prepared.spec.placement.transport
    wanted = wish == "direct" and plan.device == "cuda" and plan.shards > 1
    if not wanted or find_spec("cupy") is not None:
        return ""
    from actors.fleet.transport import NO_CUPY  # late: it imports Ray

    return NO_CUPY


def racing(spec: SweepSpec) -> str:
    """Which methods' candidates are raced, and what is certain; empty if none are."""
    if spec.racing is None:
        return ""
    counts = planned(spec)
    names = [name for name in spec.methods if races(METHODS[name]) and counts[name] > 1]
    guided = [name for name in names if spec.methods[name].searcher != "random"]
    raced = [name for name in names if name not in guided]
    confidence = spec.racing.confidence
    sure = "the best is always found" if confidence is None else (
        f"the best of a method is found with a probability of at least {confidence:g}"
    )  # fmt: skip
    said = f"{', '.join(raced) or 'no method'}: candidates that cannot win are stopped; {sure}"
    left = f"; not {', '.join(guided)}, whose searcher needs every result" if guided else ""
    return said + left


def rounding(prepared: Prepared) -> str:
    """Dtype that merged models are rounded to, if it is neither the sum's nor the base's; else
    empty."""
    pool, wish = prepared.pool, prepared.spec.placement.result_dtype
    kinds = {name: pool.base.tensors[name].dtype for name in pool.groups}
    if wish == "base":
        summed = {name: pool.delta_dtype(name) or kind for name, kind in kinds.items()}
        rounded = {kind for name, kind in kinds.items() if kind.itemsize < summed[name].itemsize}
        said = "results are rounded to {}, the base's dtype: placement.result_dtype"
    else:
        rounded = {kind for kind in kinds.values() if str(kind) != f"torch.{wish}"}
        said = f"results are {wish}, the base is {{}}: placement.result_dtype"
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in rounded))
    return said.format(names) if names else ""


def stored(prepared: Prepared) -> str:
    """Dtype of task vectors, if it is not float32; else empty."""
    wish = prepared.spec.placement.delta_dtype
    return "" if wish == "float32" else f"task vectors are {wish}: placement.delta_dtype"


def precision(prepared: Prepared) -> str:
    """Precision of products of activations, where some are not fp32; else empty."""
    placement = prepared.spec.placement
    if not placement.reduced:
        return ""
    said = f"products of activations: {placement.precision} to learn and select, "
    said += f"{placement.report_precision} to report"
    return said + ("" if prepared.plan.device == "cuda" or has_bf16() else f"; {NO_BF16}")


def task_text(task: Task) -> list[str]:
    """Lines about a task: files, classes and their origin, files that are not used."""
    layout, count = task.layout, len(task.classnames)
    config = f" of configuration {layout.config!r}" if layout.config else ""
    files = f" in {layout.used:,} files" if layout.used else ""
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in layout.splits.items())
    few = ", ".join(repr(name) for name in task.classnames[:3])
    noun = "images" if task.wording is None else "texts"
    lines = [
        f"{task.name}: {rows} {noun}{files}{config}",
        f"{task.name}: {count} classes ({few}{', …' if count > 3 else ''}): {task.origin}",
        *words(task),
    ]
    if layout.unlabelled:
        lines.append(f"{task.name}: not used, for want of labels: {', '.join(layout.unlabelled)}")
    lines += [
        f"{task.name}: {number:,} files left out: {reason} ({first}{', …' if number > 1 else ''})"
        for reason, (number, first) in layout.left.items()
    ]
    return lines


def words(task: Task) -> list[str]:
    """Lines about a text task's template, columns and targets, and about a metric of its own."""
    lines = []
    if task.wording is not None:
        columns, targets = task.wording.columns, task.wording.targets
        shown = ", ".join(repr(target) for target in targets[:3])
        more = ", …" if len(targets) > 3 else ""
        lines = [
            f"{task.name}: columns {', '.join(columns)}; template {task.wording.template!r}",
            f"{task.name}: targets {shown}{more}",
        ]
    if task.metric != ACCURACY:
        lines.append(f"{task.name}: judged by {task.metric}")
    return lines


def wrappers(pool: Pool) -> str:
    """Prefixes of wrappers that are removed from tensor names; empty if there are none.

    `'_orig_mod.' is left out of all names of pool.base, pool.experts.digits`.
    """
    found: dict[str, list[str]] = {}
    for member in (pool.base, *pool.experts.values(), *pool.references.values()):
        if member.wrapper:
            found.setdefault(member.wrapper, []).append(member.name)
    return "; ".join(
        f"{prefix!r} is left out of all names of {', '.join(names)}"
        for prefix, names in found.items()
    )


def extractor_text(extractor: Extractor, rows: int, kind: str) -> str:
    """Line about an extractor: width, rows of data of this kind, and disk of these and features."""
    squashed = " of squashed images" if extractor.squashed else ""
    disk = size(extracted_bytes(extractor, rows))
    return (
        f"{extractor.source}: {extractor.width} features{squashed}, {rows:,} {kind}s at "
        f"{extractor.inputs.dimensions}: {disk} of {CACHES[kind]}, "
        f"{size(4 * rows * extractor.width)} of features"
    )


def extracted_bytes(extractor: Extractor, rows: int) -> int:
    """Disk of the rows as an extractor reads them."""
    return rows * extractor.inputs.row.nbytes


def shifts(prepared: Prepared) -> str:
    """Line about copies of shifted rows and their disk; empty if there are none."""
    images = shifted_images(prepared)
    kept = size(shifted_bytes(prepared))
    kind = prepared.inputs.kind
    return f"{images:,} more {kind}s: {kept} of {CACHES[kind]}" if images else ""


def statistics(found: StatisticsCost) -> str:
    """Line about memory while statistics are collected, and disk.

    >>> statistics(StatisticsCost(9_700_000_000, 2_400_000_000, 1))
    '2.4 GB more a replica while they are gathered, 9.7 GB of cache'
    """
    memory, disk = size(found.memory), size(found.disk)
    return f"{memory} more a replica while they are gathered, {disk} of cache"


def unseen(spec: SweepSpec) -> str:
    """Line about tasks without an expert."""
    names = ", ".join(spec.unseen)
    return f"{names}: no expert; measured on {spec.splits.report}, never learned from or chosen by"


def adaptation(role: str, splits: SplitSpec, under: str = "", noun: str = "images") -> str:
    """Line about the rows that methods learn from, and their shift.

    >>> adaptation("fit", SplitSpec()), adaptation("report", SplitSpec())
    ('adapts to fit', 'adapts to report: the images it is reported on, without labels')
    """
    seen = getattr(splits, role) == splits.report
    shown = f"{role} under {under}" if under else role
    return f"adapts to {shown}" + (
        f": the {noun} it is reported on, without labels" if seen else ""
    )


def arrangement(plan: Plan) -> str:
    """Line about replicas and shards, and their devices.

    >>> arrangement(Plan(2, 2, ((0, 7), (7, 14)), "cuda", 1, 0.5, 0, (0, 0), 0))
    '2 replica(s) of 2 shards (segments 0-6, 7-13) on GPU (0.5 of one each)'
    """
    where = "GPU" if plan.device == "cuda" else "CPU"
    if plan.device == "cuda" and plan.gpus < 1:
        where += f" ({plan.gpus:g} of one each)"
    if plan.shards == 1:
        return f"{plan.replicas} whole replica(s) on {where}"
    blocks = ", ".join(
        f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in plan.blocks
    )
    return f"{plan.replicas} replica(s) of {plan.shards} shards (segments {blocks}) on {where}"


def spread(plan: Plan) -> str:
    """Line about shards for each node; nodes of the same name and number are grouped.

    >>> spread(Plan(5, 1, ((0, 3),), "cuda", 1, 1, 0, (0,), 0, (("a", 1), ("b", 2), ("b", 2))))
    'a: 1, 2 × b: 2'
    """
    counted = Counter(plan.nodes)
    return ", ".join(
        f"{f'{nodes} × ' if nodes > 1 else ''}{name}: {shards}"
        for (name, shards), nodes in counted.items()
    )


def memory(plan: Plan, weights: str = "memory") -> str:
    """Line about main memory of the fullest node, and of each shard."""
    low, high = gigabytes(min(plan.shard_bytes)), gigabytes(max(plan.shard_bytes))
    each = high if low == high else f"{low.removesuffix(' GB')} to {high}"
    part = "replica" if plan.shards == 1 else "shard"
    where = " on its GPU" if plan.device == "cuda" else ""
    held, made = {
        "memory": ("base and task vectors", ""),
        "files": ("base", "; task vectors stay in files, made a tensor at a time"),
        "factored": ("base and factors", "; task vectors stay factors, made a tensor at a time"),
    }[weights]
    return (
        f"{gigabytes(plan.total_bytes)} a node: {gigabytes(plan.store_bytes)} {held} once, "
        f"{each} a {part}{where}{made}"
    )


def trial_table(prepared: Prepared) -> Table:
    """Table of trials, rows of data forwarded and learned from, one row for each method."""
    learned = learned_images(prepared.spec)
    table = Table(title="at most", title_justify="left")
    noun = f"{prepared.inputs.kind}s"
    names = ["method", "trials", f"{noun} on select", f"{noun} on report"]
    for name in [*names, f"{noun} learned from"] if learned else names:
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, (trials, select, report) in forwarded(prepared).items():
        cells = [method, str(trials), f"{select:,}", f"{report:,}"]
        if learned:
            cells.append(f"{learned[method]:,}" if method in learned else "")
        table.add_row(*cells)
    return table


def forwarded(prepared: Prepared) -> dict[str, tuple[int, int, int]]:
    """Method -> its trials, and the rows that they forward on select and on report, at most."""
    spec, rows, counts = prepared.spec, prepared.role_rows, planned(prepared.spec)
    passes, found = {"ensemble": len(prepared.pool.experts)}, {}
    for method, trials in {**dict.fromkeys(references(spec), 1), **counts}.items():
        each = passes.get(method, 1)
        # Expert embeddings are cached: an ensemble costs its forward passes once, not per trial.
        select = rows["select"] * (each if each > 1 else trials)
        if method in counts and spec.methods.get(method, MethodSpec()).scheduler:
            select *= 1 + len(RUNGS)  # measured on the way as well
        found[method] = (trials, select, rows["report"] * each)
    return found


def learned_images(spec: SweepSpec) -> dict[str, int]:
    """Learning method -> trials × steps × batch size × tasks; a row of data counts each time it is
    drawn.

    Where not every candidate is known beforehand, the largest of those known is used.
    """
    works: dict[str, list[int]] = {}
    for name, _, params in learning_points(spec):
        work = params["steps"] * params["batch_size"] * len(spec.seen)
        works.setdefault(name, []).append(work)
    for name, training in in_model_points(spec):
        work = batches_of(training) * training.batch_size * len(spec.seen)
        works.setdefault(name, []).append(work)
    return {
        name: sum(each) if len(each) == trials else max(each) * trials
        for name, trials in planned(spec).items()
        if (each := works.get(name))
    }
