"""Requirements of a sweep's learning methods: extractors, gates, unlabelled splits, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from actors.artifacts.gate_file import fit, has_manifest, read
from actors.families.registry import published_gate
from actors.files.fingerprint import Fingerprint, fingerprint
from actors.files.hashes import hash_files
from actors.gate_features.extractor import FIELDS, Extractor, open_extractor
from fusion.errors import InputError
from fusion.methods.learned.gate import Gate
from fusion.methods.learned.in_model import InModelPlan, MaskOptions, RouterOptions
from fusion.methods.learned.steps import Shape, TrainingPlan
from fusion.parameters import bind
from fusion.registry import METHODS, Adaptive, InModel
from sweeps.spec.candidates import random_points
from sweeps.spec.sweep import SweepSpec
from sweeps.spec.text_defaults import BASE

TRIED = 64
"""Candidates of a method that are checked; further ones differ in numbers, rarely in names."""

ExtractorKey = tuple[str, bool]
"""An extractor's source, and whether images are squashed for it."""


@dataclass(frozen=True)
class LearningNeeds:
    """Requirements of a sweep's learning methods beside the pool."""

    extractors: Mapping[ExtractorKey, Extractor]
    gates: Mapping[str, Fingerprint]
    """Gate file -> fingerprint of its content."""
    adapts_on: frozenset[str]
    """Roles whose unlabelled images are learned from."""
    images: int
    """Most images in one forward and backward pass; 0: nothing is learned."""
    transformed: bool
    """Whether some method trims or casts task vectors."""
    fits: bool
    """Whether some method reads the fit rows, to fit a classifier or for statistics."""
    sampled: bool = False
    """Whether some method learns through one model per sample."""
    stacked: int = 0
    """Most rows of a step whose tasks have models of their own, which may run in one pass."""
    kept: float = 0.0
    """Size of the parameters trained in shards, with moments and gradients, in models."""


def learning_points(spec: SweepSpec) -> Iterator[tuple[str, Adaptive, dict[str, Any]]]:
    """Candidates of every method that learns: (method, row, all parameters)."""
    for name, entry in spec.methods.items():
        method = METHODS[name]
        if isinstance(method, Adaptive):
            for params in islice(random_points(entry, name, spec.seed), TRIED):
                yield name, method, bind(name, method.parameters, params)


def in_model_points(
    spec: SweepSpec, tasks: tuple[str, ...] = (), groups: tuple[str, ...] = ()
) -> Iterator[tuple[str, InModelPlan]]:
    """Candidates of every method that learns inside shards.

    Raises:
        InputError: wrong parameters, by method.
    """
    for name, entry in spec.methods.items():
        row = METHODS[name]
        if isinstance(row, InModel):
            for params in islice(random_points(entry, name, spec.seed), TRIED):
                try:
                    yield name, row.plan(Shape(tasks, groups), **params)
                except InputError as error:
                    raise InputError(f"methods.{name}: {error}") from None


def in_model_memory(training: InModelPlan, tasks: int) -> float:
    """Peak memory of in-model learning in the shards, in sizes of a model.

    A mask takes logits, two moments, two gradients, Σ λτ and the mask itself. Routers take about a
    twelfth of a block, four times; pruned MLPs (two thirds of a block) take values and positions.
    """
    if isinstance(training.options, MaskOptions):
        return 7.0
    left = 0.0 if training.options.prune is None else 1 - training.options.prune
    return 0.5 + tasks * left * 2 * 2 / 3


def batches_of(training: InModelPlan) -> int:
    """Number of batches of each task that in-model learning reads."""
    options = training.options
    return training.steps + (options.mask_steps if isinstance(options, MaskOptions) else 0)


def needs_of(spec: SweepSpec, tasks: tuple[str, ...], groups: tuple[str, ...]) -> LearningNeeds:
    """Open every extractor and gate that a candidate names, and build every router once.

    Raises:
        InputError: a file that cannot be opened or does not fit the pool, by method and parameter.
    """
    extractors: dict[ExtractorKey, Extractor] = {}
    gates: dict[str, Fingerprint] = {}
    adapts, images, transformed, sampled, stacked = set(), 0, False, False, 0
    for name, method, params in learning_points(spec):
        source = extractor_of(method, params)
        if source is not None and source not in extractors:
            what = f"methods.{name}.extractor"
            place = source_of(source[0], spec.pool.base)
            extractors[source] = open_extractor(place, what, squash=source[1])
        try:
            learning = learning_of(method, params, tasks, groups, extractors)
        except InputError as error:
            raise InputError(f"methods.{name}: {error}") from None
        if learning.gate is not None:
            gates[learning.gate] = gate_fingerprint(Path(learning.gate))
        if learning.steps:
            adapts.add(learning.adapt_on)
            at_once = learning.tasks_at_once or len(spec.seen) if learning.shared else 1
            images = max(images, learning.batch_size * min(at_once, len(spec.seen)))
            sampled |= not learning.shared and not learning.batch_mean
            if not learning.shared:
                stacked = max(stacked, learning.batch_size * len(spec.seen))
        transformed |= not learning.trim.nothing
    kept = 0.0
    for _, training in in_model_points(spec, tasks, groups):
        if training.steps:
            adapts.add(training.adapt_on)
        together = getattr(training.options, "tasks_at_once", 1) or len(spec.seen)
        images = max(images, training.batch_size * min(together, len(spec.seen)))
        kept = max(kept, in_model_memory(training, len(tasks)))
        if isinstance(training.options, RouterOptions):
            sampled |= not training.options.batch_mean
            stacked = max(stacked, training.batch_size * len(spec.seen))
    rows = [METHODS[name] for name in spec.methods]
    fits = any(row.fits for row in rows)
    return LearningNeeds(
        extractors, gates, frozenset(adapts), images, transformed, fits, sampled, stacked, kept
    )


def source_of(extractor: str, base: str) -> str:
    """An extractor's source, of which `base` is the pool's base.

    >>> source_of("fields:base", "some/model"), source_of("base/other", "some/model")
    ('fields:some/model', 'base/other')
    """
    place = extractor.removeprefix(FIELDS)
    return extractor.removesuffix(BASE) + base if place == BASE else extractor


def gate_fingerprint(path: Path) -> Fingerprint:
    """Fingerprint of a gate file's content."""
    return fingerprint("gate-1", hash_files({"gate": path}))


def extractor_of(method: Adaptive, params: Mapping[str, Any]) -> ExtractorKey | None:
    """The extractor (source, squash) of a candidate; None: it has no extractor."""
    gated = method.output == "model_per_sample"
    return (params["extractor"], params["squash"]) if gated else None


def learning_of(
    method: Adaptive,
    params: Mapping[str, Any],
    tasks: tuple[str, ...],
    groups: tuple[str, ...],
    extractors: Mapping[ExtractorKey, Extractor],
) -> TrainingPlan:
    """The training plan of one candidate; if it names a gate, the router starts from that gate.

    Raises:
        InputError: wrong parameters, or a gate that does not fit.
    """
    source = extractor_of(method, params)
    width = extractors[source].width if source is not None else 0
    learning = method.plan(Shape(tasks, groups, width), **params)
    if learning.gate is None or source is None:
        return learning
    gate = started_gate(learning, extractors[source], tasks, groups, str(params["grouping"]))
    return replace(learning, router=gate)


def started_gate(
    learning: TrainingPlan,
    extractor: Extractor,
    tasks: tuple[str, ...],
    groups: tuple[str, ...],
    grouping: str,
) -> Gate:
    """Load a gate file for this pool and extractor.

    A file without this project's manifest is read as a published gate: one for this pool's tasks in
    their order, on features of this extractor, from a backbone with as many layers as the pool's.
    """
    assert learning.gate is not None
    path, where = Path(learning.gate), f"gate: {learning.gate}"
    if has_manifest(path) or not path.is_file():
        gate, manifest = read(path, "gate")
    else:
        gate, manifest = published_gate(
            path,
            tasks=tasks,
            groups=groups,
            extractor=extractor.source,
            extractor_hash=extractor.fingerprint,
            preprocessing=extractor.inputs.fingerprint,
            where=where,
        )
    if manifest.grouping != grouping:
        raise InputError(f"{where}: grouping {manifest.grouping!r}; {grouping!r} is asked for")
    return fit(
        gate,
        manifest,
        tasks=tasks,
        groups=groups,
        extractor_hash=extractor.fingerprint,
        width=extractor.width,
        where=where,
    )


RUNGS = {1: 9, 3: 3}
"""Rung -> divisor: results are reported after 1/9 and 1/3 of the steps; the last rung is 9."""


LAST_RUNG = 9
