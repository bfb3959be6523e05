"""Trial of a method whose parameters are stored in the shards: steps, checkpoints, result.

The trial asks a replica for some steps at a time, and keeps the state that it gets back: parameters
and moments, after some steps; any replica continues from it with the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, cast

from actors.artifacts.in_model_state_file import learned_of, load_resident
from actors.artifacts.recipe import Recipe
from actors.experts.protocol import LearningExperts
from fusion.errors import InputError
from fusion.methods.learned.in_model import InModelPlan, MaskOptions
from fusion.methods.learned.steps import Shape
from fusion.registry import METHODS, InModel
from sweeps.planning.learning_needs import LAST_RUNG, RUNGS
from sweeps.results.folder import learned_name, state_name
from sweeps.results.trial_state import State, read_state
from sweeps.trials.learn_coding import LearningInputs, Report


def configuration_of(config: Mapping[str, Any], inputs: LearningInputs) -> InModelPlan:
    """Training configuration of a trial.

    Raises:
        InputError: wrong parameters.
    """
    row = cast(InModel, METHODS[config["method"]])
    return row.plan(Shape(inputs.tasks, inputs.groups), **config["params"])


def learn(
    config: Mapping[str, Any], experts: LearningExperts, inputs: LearningInputs, report: Report
) -> None:
    """Learn, from the checkpoint if there is one; report every result, the last one on rung 9.

    Raises:
        InputError: a loss that is not finite; names step and task.
    """
    asked, method = configuration_of(config, inputs), config["method"]
    recipe, place = Recipe(method, config["params"]), state_name(config["trial_key"])
    state, kept = restore(inputs.artifacts.get(place), method, inputs.tasks)
    stops = {asked.steps // part: rung for rung, part in RUNGS.items()}
    stops = stops if method in inputs.stepwise and asked.steps >= LAST_RUNG else {}
    start = time.perf_counter() - state.seconds
    mask_steps = asked.options.mask_steps if isinstance(asked.options, MaskOptions) else 0
    if kept is None:
        kept, _ = experts.train(recipe, None, 0, 0, config["seed"])

    def finish(rung: int, reached: bytes) -> None:
        """Write what is learned so far, evaluate it and report it."""
        data = learned_of(reached, method, inputs.tasks, mask_steps)
        inputs.artifacts.put(learned_name(config["trial_key"]), data)
        found = experts.evaluate(Recipe(method, config["params"], data), "select")
        state.seconds = time.perf_counter() - start
        report(rung, found, state)

    while state.step < asked.steps:
        last = following(state.step, asked, stops)
        kept, losses = experts.train(recipe, kept, state.step, last, config["seed"])
        state.step = last
        state.curve.append(point(last, losses))
        state.seconds = time.perf_counter() - start
        inputs.artifacts.put(place, checkpoint(state, kept))
        if state.step in stops:
            finish(stops[state.step], kept)
    finish(LAST_RUNG, kept)


def following(step: int, inputs: InModelPlan, stops: Mapping[int, int]) -> int:
    """Step at which the next call ends: a checkpoint, a rung, or the last step."""
    ends = [inputs.steps, (step // inputs.save_every + 1) * inputs.save_every, *stops]
    return min(end for end in ends if end > step)


def point(step: int, losses: list[dict[str, float]]) -> dict[str, float]:
    """Mean losses of the steps of one call."""
    found = {f"loss/{task}": sum(each[task] for each in losses) / len(losses) for task in losses[0]}
    return {"step": step, "loss": sum(found.values()), **found}


def checkpoint(state: State, kept: bytes) -> bytes:
    """Checkpoint file: progress as a line of JSON, then the replica's state."""
    return json.dumps(vars(state)).encode() + b"\n" + kept


def restore(data: bytes | None, method: str, tasks: tuple[str, ...]) -> tuple[State, bytes | None]:
    """Progress and state of a checkpoint; a new state if there is none.

    A damaged checkpoint counts as none: the trial starts over.
    """
    head, found, kept = (data or b"").partition(b"\n")
    if not found:
        return State(), None
    try:
        state = read_state(head)
        _, step = load_resident(kept, method, tasks)
    except InputError:
        return State(), None
    return (state, kept) if step == state.step else (State(), None)
