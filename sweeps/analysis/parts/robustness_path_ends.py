"""The ends of WiSE-FT's paths, as logits: the linear classifier's path, and diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from actors.experts.evaluation import Recipe
from actors.files.atomic import replacing
from fusion.analysis.robustness import prediction_diversity
from fusion.errors import InputError
from fusion.logits.exact_alpha import segment
from sweeps.analysis.core.accuracy_point import Spot, mean
from sweeps.analysis.core.evaluated_points import PROBE, labels_of
from sweeps.analysis.core.finding import Line
from sweeps.analysis.core.shift_probes import OWN, Route
from sweeps.analysis.parts.angles import Given
from sweeps.analysis.parts.robustness_text import LINEAR, REFERENCE
from sweeps.planning.shift_data import ROLE

HEAD = "wise_ft_linear"
"""The method whose probe the linear path leads to, with its defaults."""


@dataclass
class Ends:
    """What the base and the linear probe answer, on the reference and on every shift set."""

    guesses: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Reference or set -> task -> classes [N] that the base answers."""
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Reference or set -> task -> accuracy at each α of the linear path."""
    fault: str = ""
    """Why there is no linear path."""


def roles_of(routes: Sequence[Route]) -> dict[str, str]:
    """The reference and the shift sets that are measured -> the role of their rows, all tasks."""
    sets = [name for ground, _ in routes for name in ground.shifts]
    return {REFERENCE: PROBE} | {name: f"{ROLE}{name}" for name in sets}


def ends_of(given: Given, routes: Sequence[Route], alphas: Sequence[float]) -> Ends:
    """Logits are asked for role by role, and only what is needed of them is kept.

    Args:
        given: the analysis.
        routes: whose tasks are looked at.
        alphas: of the linear path (1 − α)·zero-shot + α·probe on the base's embeddings, weights and
            logits alike; none: it is not walked, and no probe fitted.
    """
    found, roles = Ends(), roles_of(routes)
    tasks = [task for ground, _ in routes for task in ground.tasks]
    experts = given.probe.experts
    recipe: Recipe | None = None
    given.probe.progress.start("ends", len(roles))
    if alphas:
        kept = given.probe.file.with_name(f"{given.context}-linear.safetensors")
        try:
            recipe = fitted(kept, lambda: experts.fit(Recipe(HEAD, {"alpha": 1.0}))[0])
        except InputError as error:
            found.fault = str(error)
    for name, role in roles.items():
        base = logits_of(given, {}, role)
        probe = {} if recipe is None else experts.logits(recipe, role)
        found.guesses[name] = {t: z.argmax(1) for t, z in base.items() if t in tasks}
        found.curves[name] = {
            task: curve(base[task], probe[task], labels_of(given.data[task], role), alphas)
            for task in found.guesses[name]
            if task in probe
        }
        given.probe.progress.advance("ends")
    return found


def fitted(path: Path, make: Callable[[], bytes]) -> Recipe:
    """The recipe of the linear probe; fitted, and written, where its file is not there."""
    if not path.exists():
        made = make()
        with replacing(path) as part:
            part.write_bytes(made)
    return Recipe(HEAD, {"alpha": 1.0}, path.read_bytes())


def logits_of(given: Given, coefficients: Mapping[str, float], role: str) -> dict[str, Tensor]:
    """Logits of a point on the rows of a role, task by task."""
    probe = given.probe
    return probe.experts.logits(probe.recipe(probe.of(coefficients)), role)


def curve(first: Tensor, last: Tensor, labels: Tensor, alphas: Iterable[float]) -> list[float]:
    """Accuracy at each α between two classifiers' logits [N, C].

    >>> import torch
    >>> first, last = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    >>> curve(first, last, torch.tensor([1, 1]), [0.0, 0.5])
    [0.5, 1.0]
    """
    constant, slope = segment(first, last)
    right = [(constant + alpha * slope).argmax(1) == labels for alpha in alphas]
    return [float(each.double().mean()) for each in right]


def linear(ends: Ends, alphas: Sequence[float]) -> list[Spot]:
    """The linear path; empty where it was not walked."""
    clean, *under = ends.curves
    if not ends.curves[clean]:
        return []
    return [
        Spot(
            LINEAR, "linear probe", alpha,
            {task: values[at] for task, values in ends.curves[clean].items()},
            {
                name: {task: values[at] for task, values in ends.curves[name].items()}
                for name in under
            },
        )
        for at, alpha in enumerate(alphas)
    ]  # fmt: skip


def diversity(
    given: Given, routes: Sequence[Route], ends: Ends, views: Mapping[str, Sequence[str]]
) -> list[Line]:
    """On which share of the rows base and fine-tuned model disagree and one of them is right."""
    found: dict[str, dict[str, float]] = {name: {} for name in ends.guesses}
    for ground, expert in routes:
        tail = "" if ground.expert is None else f"{OWN}{ground.expert}"
        for name, role in roles_of([(ground, expert)]).items():
            for task, logits in logits_of(given, {expert: 1.0}, f"{role}{tail}").items():
                labels = labels_of(given.data[task], role)
                found[name][task] = prediction_diversity(
                    ends.guesses[name][task], logits.argmax(1), labels
                )
    return [
        {"task": view, "set": name, "diversity": mean([by_task[task] for task in there])}
        for view, tasks in views.items()
        for name, by_task in found.items()
        if (there := [task for task in tasks if task in by_task])
    ]
