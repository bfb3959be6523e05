"""Trial of a method that learns a coding or gate: steps, checkpoints, intermediate results, result.

Runs in a trial's process, beside the gate and its optimiser; the experts compute the gradients.
What is kept on disk is the router and Adam's moments alone: kilobytes to a few megabytes.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.gate_file import Manifest, dump
from actors.artifacts.learned_file import packed, unpacked
from actors.artifacts.recipe import Recipe
from actors.cluster.nodes import own_id
from actors.data.row_file import open_labels
from actors.data.task_rows import TaskData
from actors.experts.evaluation import Evaluation
from actors.experts.protocol import LearningExperts
from actors.experts.unseen_tasks import adapted_role
from actors.files.cache_dir import cache_dir
from actors.files.documents import checked
from actors.fleet.file_transfer import Home, fetch, local_file
from actors.gate_features.extractor import Extractor
from actors.gate_features.feature_cache import open_features
from fusion.errors import InputError, one_line
from fusion.methods.learned.gate import Gate, hidden_norm
from fusion.methods.learned.steps import (
    MicroBatch,
    TrainingPlan,
    learn_step,
    micro_batches,
    temperature,
)
from fusion.parameters import bind
from fusion.registry import METHODS, Adaptive
from sweeps.planning.learning_needs import LAST_RUNG, RUNGS, ExtractorKey, extractor_of, learning_of
from sweeps.results.folder import learned_name, state_name
from sweeps.results.trial_state import State
from sweeps.trials.artifact_store import ArtifactStore

MEASURED = 4096
"""Rows of each task whose features' norm sets a normalised learning rate."""


@dataclass(frozen=True)
class LearningInputs:
    """Inputs of every learning trial of a sweep."""

    tasks: tuple[str, ...]
    """The experts' names."""
    groups: tuple[str, ...]
    data: Mapping[str, TaskData]
    sizes: Mapping[str, Mapping[str, int]]
    """Task -> role -> rows."""
    extractors: Mapping[ExtractorKey, Extractor]
    artifacts: ArtifactStore
    """Where states and learned files go, by trial key."""
    stepwise: frozenset[str]
    """Methods with a scheduler: they are measured on the way."""
    gates: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    """Gate that a candidate starts from, as the spec writes it -> its file, and content hash."""
    home: Home | None = None
    """Whose paths those of `data` and `gates` are; None: every node's."""
    metric: str = "acc/mean"
    """What the sweep is judged by."""
    hashes: tuple[str, ...] = ()
    """Of each expert's checkpoint; equal ones are one ingredient."""
    stacked: int = 0
    """Most rows in one pass of several tasks' models, see `steps.stacked_rows`."""


Report = Callable[[int, Evaluation, State], None]
"""report(rung, evaluation on select, state)."""


def learn(
    config: Mapping[str, Any], experts: LearningExperts, inputs: LearningInputs, report: Report
) -> None:
    """Learn, from the checkpoint if there is one; report every result, the last one on rung 9.

    Raises:
        InputError: a loss that is not finite, a gate that does not fit; names step and task.
    """
    method = cast(Adaptive, METHODS[config["method"]])
    params = bind(config["method"], method.parameters, config["params"])
    if params.get("gate"):
        params["gate"] = str(gate_of(inputs, params["gate"]))
    learning = learning_of(method, params, inputs.tasks, inputs.groups, inputs.extractors)
    source = extractor_of(method, params)
    extractor = inputs.extractors[source] if source else None
    role = learning.adapt_on if method.labelled else adapted_role(inputs.data, learning.adapt_on)
    features = features_of(inputs, role, extractor) if learning.steps else {}
    rows = inputs.sizes if learning.steps else {}
    sizes = {name: count[role] for name, count in rows.items()}
    rate = learning.learning_rate
    if learning.rate_per_norm and isinstance(learning.router, Gate) and features:
        rate /= hidden_norm(learning.router, torch.cat([f[:MEASURED] for f in features.values()]))
    optimizer = learning.optimizer(learning.router, rate)
    place = state_name(config["trial_key"])
    state = restore(inputs.artifacts.get(place), learning.router, optimizer)
    stops = {learning.steps // part: rung for rung, part in RUNGS.items()}
    stops = stops if config["method"] in inputs.stepwise and learning.steps >= LAST_RUNG else {}
    start, seen = time.perf_counter() - state.seconds, []

    def finish(rung: int) -> None:
        """Write what is learned so far, evaluate it and report it."""
        data = learned(config["method"], learning, extractor, inputs, state.step)
        inputs.artifacts.put(learned_name(config["trial_key"]), data)
        found = experts.evaluate(Recipe(config["method"], config["params"], data), "select")
        state.seconds = time.perf_counter() - start
        report(rung, found, state)

    while state.step < learning.steps:
        given = micro_batches(learning, sizes, features, state.step, config["seed"], inputs.stacked)
        losses = learn_step(
            learning,
            optimizer,
            given,
            lambda asked: experts.gradients(asked, role, learning.trim),
            state.step,
        )
        seen.append(losses)
        state.step += 1
        if state.step % learning.save_every == 0 or state.step == learning.steps:
            state.curve.append(point(state.step, seen, given))
            state.seconds, seen = time.perf_counter() - start, []
            inputs.artifacts.put(place, checkpoint(learning.router, optimizer, state))
        if state.step in stops:
            finish(stops[state.step])
    finish(LAST_RUNG)


def features_of(
    inputs: LearningInputs, role: str, extractor: Extractor | None
) -> dict[str, Tensor]:
    """Task -> features [N, d] of the rows that the method adapts to.

    Raises:
        InputError: this node lacks them, and cannot get them.
    """
    found: dict[str, Tensor] = {}
    if extractor is None:
        return found
    for name, task in inputs.data.items():
        at = task.rows[role]
        path = at.features[extractor.fingerprint]
        features = open_features(local_file(path, inputs.home) if inputs.home else path)
        found[name] = features if at.indices is None else features[torch.from_numpy(at.indices)]
    return found


def gate_of(inputs: LearningInputs, path: str) -> Path:
    """Path on this node of a gate that a candidate starts from.

    Its name is the user's, so a file that another node has there may be another gate.

    Raises:
        InputError: this node lacks it, and cannot get it.
    """
    gate, key = inputs.gates.get(path, (Path(path), ""))
    if inputs.home is None or not key or inputs.home.node == own_id():
        return gate
    return fetch(gate, inputs.home, cache_dir() / "gates" / key / gate.name)


def sizes_of(data: Mapping[str, TaskData]) -> dict[str, dict[str, int]]:
    """Task -> role -> number of rows."""
    return {
        name: {
            role: len(open_labels(at.file) if at.indices is None else at.indices)
            for role, at in task.rows.items()
        }
        for name, task in data.items()
    }


def point(step: int, seen: list[dict[str, float]], given: list[MicroBatch]) -> dict[str, float]:
    """Mean losses since the last checkpoint, and the coding's range at this step."""
    losses = {f"loss/{task}": sum(each[task] for each in seen) / len(seen) for task in seen[-1]}
    coding = torch.cat([micro_batch.coding.detach().flatten() for micro_batch in given])
    return {
        "step": step,
        "loss": sum(losses.values()),
        **losses,
        "coding/min": float(coding.min()),
        "coding/mean": float(coding.mean()),
        "coding/max": float(coding.max()),
    }


def learned(
    method: str,
    learning: TrainingPlan,
    extractor: Extractor | None,
    inputs: LearningInputs,
    steps: int,
) -> bytes:
    """Content of the learned file: a gate with its manifest, or a coding."""
    router = learning.router
    if not isinstance(router, Gate) or extractor is None:
        with torch.no_grad():
            beta = temperature(router)
            coding = router(None)
        return dump_coding(
            coding, inputs.tasks, inputs.groups, 1.0 if beta is None else float(beta)
        )
    layered = router.groups > 1
    manifest = Manifest(
        method=method,
        extractor=extractor.source,
        extractor_hash=extractor.fingerprint,
        preprocessing=extractor.inputs.fingerprint,
        width=extractor.width,
        tasks=inputs.tasks,
        grouping="layer" if layered else "task",
        keys=inputs.groups if layered else (),
        steps=steps,
        **router.options,
    )
    return dump(router, manifest)


def checkpoint(router: torch.nn.Module, optimizer: torch.optim.Optimizer, state: State) -> bytes:
    """Checkpoint file: router, Adam's moments, progress."""
    tensors = {f"router.{name}": value for name, value in router.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    held = {name: value.contiguous() for name, value in tensors.items()}
    return packed(held, "state", vars(state))


def restore(data: bytes | None, router: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load a checkpoint into router and optimizer and return its progress; a new state if there is
    none.

    A damaged checkpoint counts as none: the trial starts over.
    """
    if data is None:
        return State()
    blank = copy.deepcopy((router.state_dict(), optimizer.state_dict()))
    try:
        tensors, note = unpacked(data, "state", "state")
        state = checked(State, note, "state")
        place(tensors, router, optimizer)
    except Exception as error:  # torch raises what it likes on tensors that do not fit
        logging.getLogger(__name__).warning("a checkpoint is damaged (%s)", one_line(error)[:200])
        router.load_state_dict(blank[0])
        optimizer.load_state_dict(blank[1])
        return State()
    return state


def place(
    tensors: Mapping[str, Tensor], router: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Load a checkpoint's tensors into router and optimizer.

    Raises:
        Exception: they do not fit.
    """
    router.load_state_dict(
        {k.removeprefix("router."): v for k, v in tensors.items() if k.startswith("router.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    for number, weight in enumerate(router.parameters()):
        shapes = {key: value.shape for key, value in moments.get(number, {}).items()}
        if shapes and shapes != {"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}:
            raise InputError(f"adam.{number}: {shapes}: those of another router")
    content = optimizer.state_dict()
    content["state"] = moments
    optimizer.load_state_dict(content)
