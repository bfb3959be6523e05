"""Analysis of angles: norms, cosines and angles between task vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from fusion.task_vectors import gram as grams
from sweeps.analysis.core.finding import Finding, Line
from sweeps.analysis.core.inputs import AnalysisInputs, AnalysisOptions


def gram(inputs: AnalysisInputs, options: AnalysisOptions) -> Finding:
    """Norms, cosines and angles of all task vectors, in whole and by block."""
    matrix = inputs.gram
    blocks = grams.regrouped(matrix, grams.layer_of)
    weights = grams.least_norm(matrix.total).tolist()
    norms = grams.norms(matrix.total).tolist()
    experts: list[Line] = [
        {
            "expert": name, "norm": norms[at], "least_norm_weight": weights[at],
            **{key: inputs.singles[name].get(key) for key in ("acc/mean", "nll/mean")},
            "learning_rate": inputs.recipes.get(name, {}).get("learning_rate"),
        }
        for at, name in enumerate(matrix.tasks)
    ]  # fmt: skip
    tables: dict[str, list[Line]] = {"experts": experts, "angles": [], "blocks": []}
    place = place_in(inputs.blocks)
    inside = sorted(blocks.by_group.items(), key=lambda block: place(block[0]))
    for where, products in [("total", matrix.total), *inside]:
        cosines, angles = grams.cosines(products), grams.angles(products)
        for i, j in combinations(range(len(matrix.tasks)), 2):
            line = {
                "first": matrix.tasks[i], "second": matrix.tasks[j],
                "inner": float(products[i, j]), "cosine": float(cosines[i, j]),
                "angle": float(angles[i, j]),
            }  # fmt: skip
            if where == "total":
                tables["angles"].append(line)
            else:
                tables["blocks"].append({"block": where, **line})
    table = grams.cosines(matrix.total).tolist()
    tables["cosines"] = [
        {"cosine": name, **dict(zip(matrix.tasks, line, strict=True))}
        for name, line in zip(matrix.tasks, table, strict=True)
    ]
    tables["norms"] = [
        {"block": where, "expert": name, "norm": length}
        for where, products in inside
        for name, length in zip(matrix.tasks, grams.norms(products).tolist(), strict=True)
    ]
    about = "Angles between task vectors, with the base as origin, over all tensors of the models."
    return Finding("gram", inputs.context, about, gram_lines(inputs), tables, ("experts",))


def place_in(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Sort key of blocks: their place in the model; unknown ones come last, by name.

    >>> sorted(["last", "layers.10", "layers.9"], key=place_in(["layers.9", "layers.10", "last"]))
    ['layers.9', 'layers.10', 'last']
    """
    places = {block: at for at, block in enumerate(order)}
    return lambda block: (places.get(block, len(places)), block)


def gram_lines(inputs: AnalysisInputs) -> list[str]:
    """Sentences about the angles."""
    matrix, lines = inputs.gram, []
    if zero := grams.zero_tasks(matrix):
        lines.append(f"Equal to the base, so without an angle: {', '.join(zero)}.")
    if len(matrix.tasks) < 2:
        return [*lines, "One model: there is no angle."]
    upper = np.triu_indices(len(matrix.tasks), 1)
    angles = grams.angles(matrix.total).numpy()[upper]
    if np.isfinite(angles).any():
        low, high = np.nanargmin(angles), np.nanargmax(angles)
        (a, b), (c, d) = [
            (matrix.tasks[upper[0][at]], matrix.tasks[upper[1][at]]) for at in (low, high)
        ]
        lines.append(
            f"Angles reach from {angles[low]:.1f}° ({a}, {b}) to {angles[high]:.1f}° ({c}, {d});"
            f" the median is {np.nanmedian(angles):.1f}°."
        )
    cosine, ratio = grams.model_stock_ratio(matrix.total)
    if math.isfinite(cosine):
        lines.append(
            f"The mean cosine is {cosine:.3f}; over the whole model Model Stock would go"
            f" {ratio:.3f} of the way from the base to the average."
        )
    return lines
