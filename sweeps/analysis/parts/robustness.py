"""Analysis of robustness under shift: WiSE-FT's paths, and effective robustness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from actors.artifacts.recipe import Recipe
from actors.files.atomic import replacing
from fusion.analysis import robustness as measures
from fusion.analysis.robustness import prediction_diversity
from fusion.errors import InputError
from fusion.logits.exact_alpha import segment
from sweeps.analysis.core.evaluated_points import PROBE, Metrics, labels_of
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.inputs import AnalysisInputs, AnalysisOptions
from sweeps.analysis.core.shift_probes import OWN, Route, ShiftContext
from sweeps.analysis.parts.robustness_text import LINEAR, MEAN, PATH, REFERENCE, SINGLE, sentences
from sweeps.console.number_format import count
from sweeps.planning.shift_data import ROLE

PART = "robustness"


def robustness(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Accuracy on the reference and under shift: WiSE-FT's path, the linear classifier's path, all
    models."""
    routes = chosen(inputs, options)
    lines = list(inputs.shifted.left_out)
    if not routes:
        return Finding(PART, inputs.context_under_shift, "", (*lines, why_not(inputs, options)))
    alphas = [step / (options.alphas - 1) for step in range(options.alphas)]
    accuracy_points = path(routes, alphas)
    ends = ends_of(inputs, routes, alphas if options.linear else ())
    accuracy_points += linear(ends, alphas)
    if ends.fault:
        lines.append(f"There is no path of the linear classifier: {ends.fault}.")
    if inputs.soup:
        accuracy_points += singles(inputs, routes[0][0])
    tasks = [task for context, _ in routes for task in context.tasks]
    views = {task: [task] for task in tasks} | ({MEAN: tasks} if len(tasks) > 1 else {})
    sets = [name for name in inputs.shifted.about if any(name in g.shifts for g, _ in routes)]
    points: list[Line] = []
    baselines: list[Line] = []
    for view, parts in views.items():
        for name in (*sets, MEAN):
            found, baseline = measured(accuracy_points, parts, sets if name == MEAN else [name])
            points += [{"task": view, "set": name, **line} for line in found]
            baselines += [{"task": view, "set": name, **baseline}] if found else []
    differing = diversity(inputs, routes, ends, views)
    main = list(views)[-1]
    shown, unlike = (
        [line for line in table if line["task"] == main] for table in (points, differing)
    )
    base = next(line for line in baselines if (line["task"], line["set"]) == (main, MEAN))
    lines += sentences(shown, unlike, base, soup=inputs.soup, unit=inputs.unit)
    tables: dict[str, Sequence[Line]] = {
        "summary": summary(shown), "points": points, "baselines": baselines, "diversity": differing,
    }  # fmt: skip
    here = about(inputs, tasks, sets)
    return Finding(PART, inputs.context_under_shift, here, lines, tables, ("summary", "diversity"))


def chosen(inputs: AnalysisInputs, options: AnalysisOptions) -> list[Route]:
    """The paths to evaluate: for ingredients, to the best one or the requested one; for experts, to
    each on its own task or to the requested one."""
    contexts = inputs.shifted.contexts
    if inputs.soup:
        name = options.path or next(iter(inputs.ranked), None)
        return [(context, name) for context in contexts if name is not None]
    return [
        (context, context.expert)
        for context in contexts
        if context.expert is not None and options.path in (None, context.expert)
    ]


def why_not(inputs: AnalysisInputs, options: AnalysisOptions) -> str:
    """Why nothing is evaluated."""
    if not inputs.shifted.about:
        left = bool(inputs.shifted.left_out)
        why = "no shift set has rows of select's side" if left else "the file has no `shifts`"
    elif inputs.soup:
        why = "no model with a finite score"
    else:
        why = f"no shift set is of the task of {options.path or 'any expert'}"
    return f"Skipped: {why}."


def about(inputs: AnalysisInputs, tasks: Iterable[str], sets: Iterable[str]) -> str:
    """Sentence: what was evaluated, on which rows."""
    count = sum(len(labels_of(inputs.data[task], PROBE)) for task in tasks)
    rows = "; ".join(f"{name}: {inputs.shifted.about[name]}" for name in sets)
    return (
        "Accuracy on the reference against accuracy under shift, along (1 − α)·base + α·fine-tuned:"
        " of all weights (end to end), and of the head alone (linear classifier). The reference is"
        f" {count:,} {inputs.unit}s of select; shift sets: {rows}. Rows that are reported on are"
        " not among them."
    )


def path(routes: Sequence[Route], alphas: Sequence[float]) -> list[AccuracyPoint]:
    """Evaluate θ_α = θ₀ + α τ at each α: one model, or one for each task on that task alone."""
    clean: list[dict[str, float]] = [{} for _ in alphas]
    shifts: list[dict[str, dict[str, float]]] = [{} for _ in alphas]
    for context, expert in routes:
        walk = [context.clean.of({expert: alpha}) for alpha in alphas]
        for at, metrics in enumerate(context.clean(walk, "path")):
            clean[at] |= accuracies(metrics, context)
        for name, points in context.shifts.items():
            for at, metrics in enumerate(points(walk, f"path, {name}")):
                shifts[at].setdefault(name, {}).update(accuracies(metrics, context))
    text = routes[0][1] if len(routes) == 1 else "each task's own expert"
    return [
        AccuracyPoint(PATH, text, alpha, clean[at], shifts[at]) for at, alpha in enumerate(alphas)
    ]


def singles(inputs: AnalysisInputs, context: ShiftContext) -> list[AccuracyPoint]:
    """Evaluate every ingredient that has a score."""
    walk = [context.clean.of({name: 1.0}) for name in inputs.ranked]
    clean = context.clean(walk, "models")
    shifts = {name: points(walk, f"models, {name}") for name, points in context.shifts.items()}
    return [
        AccuracyPoint(
            SINGLE, name, None, accuracies(clean[at], context),
            {each: accuracies(found[at], context) for each, found in shifts.items()},
        )
        for at, name in enumerate(inputs.ranked)
    ]  # fmt: skip


def accuracies(metrics: Metrics, context: ShiftContext) -> dict[str, float]:
    """Accuracy on each of a context's tasks that was measured."""
    return {t: metrics[f"acc/{t}"] for t in context.tasks if f"acc/{t}" in metrics}


def measured(
    accuracy_points: Sequence[AccuracyPoint], tasks: Sequence[str], sets: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One line for each accuracy point with its robustness, and the baseline.

    No lines where no set is of these tasks. The base is no model of the baseline: it was not tuned
    on the reference.
    """
    found = [
        (point, pair) for point in accuracy_points if (pair := point.mean(tasks, sets)) is not None
    ]
    if not found:
        return [], {}
    before = next(shift for point, (_, shift) in found if (point.curve, point.alpha) == (PATH, 0.0))
    baseline, about_it = baseline_of([pair for point, pair in found if point.curve == SINGLE])
    rows = []
    for point, (reference, shift) in found:
        expected, effective = None, None
        if baseline is not None:
            expected = float(baseline(reference))
            effective = float(measures.effective_robustness(baseline, reference, shift))
        rows.append(
            {
                "curve": point.curve, "model": point.model, "alpha": point.alpha,
                "reference": reference, "shift": shift, "expected": expected,
                "effective": effective,
                "relative": float(measures.relative_robustness(shift, before)),
            }
        )  # fmt: skip
    return rows, about_it


def baseline_of(
    models: Sequence[tuple[float, float]],
) -> tuple[measures.Baseline | None, dict[str, Any]]:
    """The line through models' (reference, shift) accuracies, with its row of the tables."""
    about_it = {"models": len(models), "slope": None, "intercept": None, "fault": ""}
    if len(models) < 2:
        return None, about_it | {"fault": f"{count(len(models), 'model')}; two different needed"}
    try:
        found = measures.fit_baseline(*zip(*models, strict=True))
    except InputError as error:
        return None, about_it | {"fault": str(error).removeprefix("baseline: ")}
    return found, about_it | {"slope": found.slope, "intercept": found.intercept}


def summary(points: Sequence[Line]) -> list[Line]:
    """One line for each classifier: reference, each shift set, their mean, robustness."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in points:
        key = (line["curve"], line["model"], line["alpha"])
        row = found.setdefault(key, dict(zip(("curve", "model", "alpha"), key, strict=True)))
        if line["set"] == MEAN:
            row |= {"reference": line["reference"], "mean": line["shift"]}
            row |= {name: line[name] for name in ("effective", "relative")}
        else:
            row[f"shift/{line['set']}"] = line["shift"]
    first = ("curve", "model", "alpha", "reference")
    return [
        {name: row[name] for name in (*first, *(n for n in row if n not in first))}
        for row in found.values()
    ]


Accuracies: TypeAlias = Mapping[str, float]
"""Task -> accuracy."""


@dataclass(frozen=True)
class AccuracyPoint:
    """Accuracies of one classifier on all tasks, clean and under each shift."""

    curve: str
    """What it is a point of."""
    model: str
    alpha: float | None
    clean: Accuracies
    shifts: Mapping[str, Accuracies]
    """Shift set -> accuracies of the tasks that it is of."""

    def mean(self, tasks: Sequence[str], sets: Sequence[str]) -> tuple[float, float] | None:
        """(reference, shift): means over sets of means over tasks; None: no set is of any task.

        For each set the reference is that of the same tasks, so that both are of the same classes.

        >>> shifts = {"s": {"a": 0.5}, "t": {"b": 0.3}}
        >>> point = AccuracyPoint("", "", None, {"a": 0.8, "b": 0.6}, shifts)
        >>> point.mean(["a", "b"], ["s"]), point.mean(["a"], ["t"])
        ((0.8, 0.5), None)
        """
        pairs = []
        for name in sets:
            under = self.shifts.get(name, {})
            there = [task for task in tasks if task in under]
            if there:
                pairs.append([mean([each[task] for task in there]) for each in (self.clean, under)])
        if not pairs:
            return None
        reference, shift = (mean(column) for column in zip(*pairs, strict=True))
        return reference, shift


def mean(values: Sequence[float]) -> float:
    """The mean; of equal values exactly their value."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)


HEAD = "wise_ft_linear"
"""The method whose probe the linear path leads to, with its defaults."""


@dataclass
class Ends:
    """Predictions of the base and the linear probe, on the reference and on every shift set."""

    guesses: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Reference or set -> task -> classes [N] that the base answers."""
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Reference or set -> task -> accuracy at each α of the linear path."""
    fault: str = ""
    """Why there is no linear path."""


def roles_of(routes: Sequence[Route]) -> dict[str, str]:
    """Reference and shift sets -> the role of their rows, over all tasks."""
    sets = [name for context, _ in routes for name in context.shifts]
    return {REFERENCE: PROBE} | {name: f"{ROLE}{name}" for name in sets}


def ends_of(inputs: AnalysisInputs, routes: Sequence[Route], alphas: Sequence[float]) -> Ends:
    """Compute the ends' logits role by role; only what is needed of them is kept.

    Args:
        inputs: of the analysis.
        routes: whose tasks are looked at.
        alphas: of the linear path (1 − α)·zero-shot + α·probe on the base's embeddings, weights and
            logits alike; none: it is not walked, and no probe fitted.
    """
    found, roles = Ends(), roles_of(routes)
    tasks = [task for context, _ in routes for task in context.tasks]
    experts = inputs.probe.experts
    recipe: Recipe | None = None
    inputs.probe.progress.start("ends", len(roles))
    if alphas:
        kept = inputs.probe.file.with_name(f"{inputs.context}-linear.safetensors")
        try:
            recipe = fitted(kept, lambda: experts.fit(Recipe(HEAD, {"alpha": 1.0}))[0])
        except InputError as error:
            found.fault = str(error)
    for name, role in roles.items():
        base = logits_of(inputs, {}, role)
        probe = {} if recipe is None else experts.logits(recipe, role)
        found.guesses[name] = {t: z.argmax(1) for t, z in base.items() if t in tasks}
        found.curves[name] = {
            task: curve(base[task], probe[task], labels_of(inputs.data[task], role), alphas)
            for task in found.guesses[name]
            if task in probe
        }
        inputs.probe.progress.advance("ends")
    return found


def fitted(path: Path, make: Callable[[], bytes]) -> Recipe:
    """Recipe of the linear probe; it is fitted and written if its file is missing."""
    if not path.exists():
        made = make()
        with replacing(path) as part:
            part.write_bytes(made)
    return Recipe(HEAD, {"alpha": 1.0}, path.read_bytes())


def logits_of(
    inputs: AnalysisInputs, coefficients: Mapping[str, float], role: str
) -> dict[str, Tensor]:
    """Logits of a point on the rows of a role, task by task."""
    probe = inputs.probe
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


def linear(ends: Ends, alphas: Sequence[float]) -> list[AccuracyPoint]:
    """The linear path's points; empty if it was not evaluated."""
    clean, *under = ends.curves
    if not ends.curves[clean]:
        return []
    return [
        AccuracyPoint(
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
    inputs: AnalysisInputs, routes: Sequence[Route], ends: Ends, views: Mapping[str, Sequence[str]]
) -> list[Line]:
    """Share of rows on which base and fine-tuned model disagree and one of them is right."""
    found: dict[str, dict[str, float]] = {name: {} for name in ends.guesses}
    for context, expert in routes:
        tail = "" if context.expert is None else f"{OWN}{context.expert}"
        for name, role in roles_of([(context, expert)]).items():
            for task, logits in logits_of(inputs, {expert: 1.0}, f"{role}{tail}").items():
                labels = labels_of(inputs.data[task], role)
                found[name][task] = prediction_diversity(
                    ends.guesses[name][task], logits.argmax(1), labels
                )
    return [
        {"task": view, "set": name, "diversity": mean([by_task[task] for task in there])}
        for view, tasks in views.items()
        for name, by_task in found.items()
        if (there := [task for task in tasks if task in by_task])
    ]
