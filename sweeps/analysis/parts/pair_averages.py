"""Analysis of averages of two models: gain against angle, and along one hyper-parameter."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import scipy

from fusion.analysis import landscape
from fusion.task_vectors import gram as grams
from sweeps.analysis.core.evaluated_points import Metrics, mixture
from sweeps.analysis.core.finding import Finding
from sweeps.analysis.core.inputs import AnalysisInputs, AnalysisOptions, skipped
from sweeps.console.number_format import points
from sweeps.results.ingredient_recipes import chains


def angles(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Gain of averaging two models, against the angle between them."""
    names = inputs.ranked[: options.most]
    if len(names) < 2:
        return skipped(inputs, "angles", f"{len(names)} model with a finite score; two needed")
    pairs = list(combinations(names, 2))
    middles = inputs.whole([mixture(inputs.whole, a, b, 0.5) for a, b in pairs], "angles")
    between = grams.angles(inputs.gram.total)
    table: list[dict[str, Any]] = []
    for (a, b), middle in zip(pairs, middles, strict=True):
        gain = landscape.advantage(
            *(accuracies(each, inputs) for each in (middle, inputs.singles[a], inputs.singles[b]))
        )
        table.append(
            {
                "first": a, "second": b,
                "angle": float(between[inputs.gram.of(a), inputs.gram.of(b)]),
                "over_mean": gain.over_mean, "over_best": gain.over_best,
                "acc_first": inputs.singles[a]["acc/mean"],
                "acc_second": inputs.singles[b]["acc/mean"],
                "acc_middle": middle["acc/mean"],
            }
        )  # fmt: skip
    gains = [line["over_best"] for line in table]
    above = sum(gain > 0 for gain in gains)
    best = max(table, key=lambda line: float(line["over_best"]))
    lines = [
        f"Of {len(table)} pairs the average beats the better model in {above}; at best by"
        f" {points(best['over_best'])} points ({best['first']}, {best['second']})."
    ]
    between_of, gain_of = (
        [float(line[key]) for line in table if math.isfinite(line["angle"])]
        for key in ("angle", "over_mean")
    )
    if len(between_of) > 2 and min(map(np.ptp, (between_of, gain_of))) > 0:
        rank = float(scipy.stats.spearmanr(between_of, gain_of).statistic)
        lines.append(f"Rank correlation of angle and advantage over the mean: {rank:+.2f}.")
    about = (
        "What the average of two models gains in accuracy on select, over their mean and over the"
        f" better of them, for all pairs of the {len(names)} best models."
    )
    return Finding("angles", inputs.context, about, lines, {"pairs": table}, ("pairs",))


def accuracies(metrics: Metrics, inputs: AnalysisInputs) -> list[float]:
    """Accuracy on each task."""
    return [metrics[f"acc/{task}"] for task in inputs.data]


def grid(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Gain of averaging along one hyper-parameter, all others being equal."""
    found = chains({name: inputs.recipes[name] for name in inputs.ranked if name in inputs.recipes})
    if not found:
        return skipped(
            inputs, "grid", "no two models differ in one hyper-parameter (`recipe.yaml`) alone"
        )
    pairs = [(a, b) for chain in found for a, b in combinations(chain.names, 2)]
    middles = inputs.whole([mixture(inputs.whole, a, b, 0.5) for a, b in pairs], "grid")
    right = dict(zip(pairs, (metrics["acc/mean"] for metrics in middles), strict=True))
    table, lines = [], []
    for number, chain in enumerate(found):
        single = [inputs.singles[name]["acc/mean"] for name in chain.names]
        order = range(len(single))
        gains = landscape.gain_matrix(
            single, {(i, j): right[chain.names[i], chain.names[j]]
                     for i, j in combinations(order, 2)}
        )  # fmt: skip
        table += [
            {"chain": number, "hyperparameter": chain.hyperparameter, "fixed": chain.fixed,
             "first": chain.names[i], "second": chain.names[j],
             "first_value": chain.values[i], "second_value": chain.values[j],
             "gain": float(gains[i, j])}
            for i in order for j in order if i <= j
        ]  # fmt: skip
        off = gains[np.triu_indices(len(single), 1)]
        lines.append(
            f"{chain.hyperparameter} over {len(single)} values ({chain.fixed or 'all else alike'}):"
            f" averages gain {points(float(off.min()))} to {points(float(off.max()))} points over"
            " the best model between their ends."
        )
    about = (
        "Models that differ in one hyper-parameter alone: what the average of two gains in"
        " accuracy over the best of all models from the one to the other."
    )
    return Finding("grid", inputs.context, about, lines, {"gains": table}, ("gains",))
