"""Classification heads that `sweeps train` fine-tunes under; each is made once for its task.

`<out>/heads/<task>/zero_shot.safetensors` and `linear_probe.safetensors`; a copy lies beside each
tower that was tuned under it, as `head.safetensors`. A sweep file names one: `tasks.<task>.head`.

Axes: C classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import ray
from torch import Tensor

from actors.artifacts.head_file import FILE, HeadFacts, HeadKind, head_facts, read_head, write_head
from actors.artifacts.recipe import BASE
from actors.checkpoints.checkpoint import content_hash
from actors.data.task import Task
from actors.data.task_rows import TaskData
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.hashes import hash_text
from actors.fleet.transport import fetched
from actors.pool.pool import open_pool
from fusion.errors import InputError
from fusion.logits.calibration import calibrated_beta
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import Labelled
from fusion.methods.classifiers.linear_probe import lp_ft_probe
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.planning.prepared import decisive
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Choice, Grid
from sweeps.spec.sweep import PlacementSpec
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import head_file


def kinds(entry: MethodSpec) -> list[HeadKind]:
    """Kinds of head that a search may choose."""
    given = entry.params.get("head", "zero_shot")
    values = given.values if isinstance(given, Grid | Choice) else [given]
    return [kind for kind in get_args(HeadKind) if kind in values]


def make_heads(context: FineTuningContext, tasks: Mapping[str, Task], progress: Progress) -> None:
    """Write the heads that trials are tuned under, if they are missing; none where heads are
    trained with the model.

    Raises:
        InputError: a probe that cannot be fitted: rows of one class only, say. Names the task.
    """
    if "head" not in {option.name for option in fields(context.training.options)}:
        return
    wanted = kinds(context.spec.finetune)
    base = content_hash(context.base)
    asked = {}
    gpus = ray_connection.of_cluster(context.nodes).gpus if "linear_probe" in wanted else 0
    for name, task in tasks.items():
        head = context.data[name].head
        facts = HeadFacts(name, "zero_shot", task.classnames, base, head.stem)
        if "zero_shot" in wanted and known(head_file(context.out, name, "zero_shot")) != facts:
            write_head(head_file(context.out, name, "zero_shot"), read_head(head), facts)
        if "linear_probe" in wanted:
            rows = hash_text("probe-1", context.contexts[name])
            facts = replace(facts, kind="linear_probe", rows=rows)
            there = known(head_file(context.out, name, "linear_probe"))
            if there is None or replace(there, identity=facts.identity, C=None) != facts:
                run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(probe)
                device = "cuda" if gpus else "cpu"
                asked[name] = (
                    facts,
                    run.remote(context.base.folder, context.data[name], cache_dir(), device),
                )
    progress.start("probes", len(asked))
    for name, (facts, ref) in asked.items():
        try:
            matrix, strength, select = fetched(ref)
        except InputError as error:
            raise InputError(f"tasks.{name}: its linear probe: {error}") from None
        identity = hash_text("probe", matrix.shape, matrix.numpy().tobytes().hex())
        facts = replace(facts, identity=identity, C=strength)
        write_head(head_file(context.out, name, "linear_probe"), matrix, facts)
        progress.advance("probes", note=f"{name}: {select:.4f} on select, C {strength:.3g}")


def known(file: Path) -> HeadFacts | None:
    """Content of a head file; None if it is missing or damaged, and must be computed again."""
    try:
        return head_facts(file)[0]
    except InputError:
        return None


def probe(
    base: Path, task: TaskData, root: Path, device: str = "cpu"
) -> tuple[Tensor, float, float]:
    """LP-FT's head for one task: a linear probe on the base's embeddings of fit, C selected on
    select.

    The authors' probe reads unnormalised features, has an intercept, and trains on with the tower.
    This one is a head as all others here: n(z)·headᵀ, and stays as it is. So its scale is not left
    to the penalty, which of equally right heads may choose one of almost no length, under which a
    tower learns nothing (the authors' can grow): it is that of the smallest loss on select, at most
    the zero-shot head's.

    Returns:
        The head float32 [C, D], the chosen C, and its accuracy on select.

    Raises:
        InputError: see `lp_ft_probe`.
    """
    pool = open_pool(str(base), {task.name: str(base)})
    # The name that a sweep's cache has for the base's embeddings: made once for both.
    cache = embedding_cache(root, pool, device, decisive(PlacementSpec()))
    experts = local_experts(pool, {task.name: task}, cache, device=device)
    fit, select = (
        Labelled(
            experts.runner.embedded(BASE, task.name, role),
            experts.runner.labels(task.name, role),
            role,
        )
        for role in ("fit", "select")
    )
    found = lp_ft_probe(
        fit,
        select,
        convention="normalised",
        intercept=False,
        classes=len(experts.runner.heads[task.name]),
    )
    return scaled(found.weight, experts.runner.heads[task.name], select), found.C, found.accuracy


def scaled(head: Tensor, zero_shot: Tensor, select: Labelled) -> Tensor:
    """β·head with the β of the smallest loss on select; its mean row is at most as long as the
    zero-shot head's.

    float32 [C, D]; what is right stays right.
    """
    most = head * (zero_shot.norm(dim=1).mean() / head.norm(dim=1).mean())
    beta = calibrated_beta(logits(select.features, most), select.labels, high=1.0)
    found: Tensor = (beta * most).float()
    return found


def given_head(out: Path, task: str, kind: HeadKind, place: Path) -> Path | None:
    """A trial's own copy of its head, which a killed run continues with.

    Args:
        out: the folder of the training.
        task: its name.
        kind: what the trial is tuned under.
        place: the trial's folder.

    Returns:
        The copy; None: no head was made for this training, and the zero-shot one is the cache's.
    """
    copied, source = place / FILE, head_file(out, task, kind)
    if not copied.exists() and source.exists():
        copy_head(source, copied)
    return copied if copied.exists() else None


def copy_head(source: Path, target: Path) -> None:
    """Copy a head file atomically."""
    data = source.read_bytes()
    with replacing(target) as part:
        part.write_bytes(data)
