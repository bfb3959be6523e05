"""The part of an analysis that looks under shift: WiSE-FT's paths, and effective robustness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fusion.analysis import robustness as measures
from fusion.errors import InputError
from sweeps.analysis.core.accuracy_point import Spot
from sweeps.analysis.core.evaluated_points import PROBE, Metrics, labels_of
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.shift_probes import Ground, Route
from sweeps.analysis.parts.angles import Given, Wish
from sweeps.analysis.parts.robustness_path_ends import diversity, ends_of, linear
from sweeps.analysis.parts.robustness_text import MEAN, PATH, SINGLE, sentences
from sweeps.console.number_format import count

PART = "robustness"


def robustness(given: Given, wish: Wish) -> Finding:
    """Reference against shift accuracy: WiSE-FT's path, the linear classifier's, all models."""
    routes = chosen(given, wish)
    lines = list(given.shifted.left_out)
    if not routes:
        return Finding(PART, given.context_under_shift, "", (*lines, why_not(given, wish)))
    alphas = [step / (wish.alphas - 1) for step in range(wish.alphas)]
    spots = path(routes, alphas)
    ends = ends_of(given, routes, alphas if wish.linear else ())
    spots += linear(ends, alphas)
    if ends.fault:
        lines.append(f"There is no path of the linear classifier: {ends.fault}.")
    if given.soup:
        spots += singles(given, routes[0][0])
    tasks = [task for ground, _ in routes for task in ground.tasks]
    views = {task: [task] for task in tasks} | ({MEAN: tasks} if len(tasks) > 1 else {})
    sets = [name for name in given.shifted.about if any(name in g.shifts for g, _ in routes)]
    points: list[Line] = []
    baselines: list[Line] = []
    for view, parts in views.items():
        for name in (*sets, MEAN):
            found, baseline = measured(spots, parts, sets if name == MEAN else [name])
            points += [{"task": view, "set": name, **line} for line in found]
            baselines += [{"task": view, "set": name, **baseline}] if found else []
    differing = diversity(given, routes, ends, views)
    main = list(views)[-1]
    shown, unlike = (
        [line for line in table if line["task"] == main] for table in (points, differing)
    )
    base = next(line for line in baselines if (line["task"], line["set"]) == (main, MEAN))
    lines += sentences(shown, unlike, base, soup=given.soup)
    tables: dict[str, Sequence[Line]] = {
        "summary": summary(shown), "points": points, "baselines": baselines, "diversity": differing,
    }  # fmt: skip
    here = about(given, tasks, sets)
    return Finding(PART, given.context_under_shift, here, lines, tables, ("summary", "diversity"))


def chosen(given: Given, wish: Wish) -> list[Route]:
    """Where paths are walked, and to whom: of ingredients to the best, or the one asked for; of
    experts to each one on its own task, or to the one asked for."""
    grounds = given.shifted.grounds
    if given.soup:
        name = wish.path or next(iter(given.ranked), None)
        return [(ground, name) for ground in grounds if name is not None]
    return [
        (ground, ground.expert)
        for ground in grounds
        if ground.expert is not None and wish.path in (None, ground.expert)
    ]


def why_not(given: Given, wish: Wish) -> str:
    """Why there is nothing to measure."""
    if not given.shifted.about:
        left = bool(given.shifted.left_out)
        why = "no shift set has rows of select's side" if left else "the file has no `shifts`"
    elif given.soup:
        why = "no model with a finite score"
    else:
        why = f"no shift set is of the task of {wish.path or 'any expert'}"
    return f"Skipped: {why}."


def about(given: Given, tasks: Iterable[str], sets: Iterable[str]) -> str:
    """What was measured, on which rows."""
    images = sum(len(labels_of(given.data[task], PROBE)) for task in tasks)
    rows = "; ".join(f"{name}: {given.shifted.about[name]}" for name in sets)
    return (
        "Accuracy on the reference against accuracy under shift, along (1 − α)·base + α·fine-tuned:"
        " of all weights (end to end), and of the head alone (linear classifier). The reference is"
        f" {images:,} images of select; shift sets: {rows}. Rows that are reported on are not"
        " among them."
    )


def path(routes: Sequence[Route], alphas: Sequence[float]) -> list[Spot]:
    """θ_α = θ₀ + α τ at each α: one model, or one a task, on that task alone."""
    clean: list[dict[str, float]] = [{} for _ in alphas]
    shifts: list[dict[str, dict[str, float]]] = [{} for _ in alphas]
    for ground, expert in routes:
        walk = [ground.clean.of({expert: alpha}) for alpha in alphas]
        for at, metrics in enumerate(ground.clean(walk, "path")):
            clean[at] |= accuracies(metrics, ground)
        for name, points in ground.shifts.items():
            for at, metrics in enumerate(points(walk, f"path, {name}")):
                shifts[at].setdefault(name, {}).update(accuracies(metrics, ground))
    text = routes[0][1] if len(routes) == 1 else "each task's own expert"
    return [Spot(PATH, text, alpha, clean[at], shifts[at]) for at, alpha in enumerate(alphas)]


def singles(given: Given, ground: Ground) -> list[Spot]:
    """Every ingredient that has a score."""
    walk = [ground.clean.of({name: 1.0}) for name in given.ranked]
    clean = ground.clean(walk, "models")
    shifts = {name: points(walk, f"models, {name}") for name, points in ground.shifts.items()}
    return [
        Spot(
            SINGLE, name, None, accuracies(clean[at], ground),
            {each: accuracies(found[at], ground) for each, found in shifts.items()},
        )
        for at, name in enumerate(given.ranked)
    ]  # fmt: skip


def accuracies(metrics: Metrics, ground: Ground) -> dict[str, float]:
    """Of each of a ground's tasks that was measured."""
    return {t: metrics[f"acc/{t}"] for t in ground.tasks if f"acc/{t}" in metrics}


def measured(
    spots: Sequence[Spot], tasks: Sequence[str], sets: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A line a spot with both accuracies and robustness, and the baseline they are measured by.

    No lines where no set is of these tasks. The base is no model of the baseline: it was not tuned
    on the reference.
    """
    found = [(spot, pair) for spot in spots if (pair := spot.mean(tasks, sets)) is not None]
    if not found:
        return [], {}
    before = next(shift for spot, (_, shift) in found if (spot.curve, spot.alpha) == (PATH, 0.0))
    baseline, about_it = baseline_of([pair for spot, pair in found if spot.curve == SINGLE])
    rows = []
    for spot, (reference, shift) in found:
        expected, effective = None, None
        if baseline is not None:
            expected = float(baseline(reference))
            effective = float(measures.effective_robustness(baseline, reference, shift))
        rows.append(
            {
                "curve": spot.curve, "model": spot.model, "alpha": spot.alpha,
                "reference": reference, "shift": shift, "expected": expected,
                "effective": effective,
                "relative": float(measures.relative_robustness(shift, before)),
            }
        )  # fmt: skip
    return rows, about_it


def baseline_of(
    models: Sequence[tuple[float, float]],
) -> tuple[measures.Baseline | None, dict[str, Any]]:
    """The line through models' (reference, shift) accuracies, and what tables say of it."""
    about_it = {"models": len(models), "slope": None, "intercept": None, "fault": ""}
    if len(models) < 2:
        return None, about_it | {"fault": f"{count(len(models), 'model')}; two different needed"}
    try:
        found = measures.fit_baseline(*zip(*models, strict=True))
    except InputError as error:
        return None, about_it | {"fault": str(error).removeprefix("baseline: ")}
    return found, about_it | {"slope": found.slope, "intercept": found.intercept}


def summary(points: Sequence[Line]) -> list[Line]:
    """A line a classifier: the reference, each shift set, their mean, and its robustness."""
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
