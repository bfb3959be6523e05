"""Describe which rows of a comparison differ: verdict, sentences, matrix of tests."""

from __future__ import annotations

from typing import Any

from actors.artifacts.recipe import REFERENCES
from fusion.registry import METHODS
from sweeps.console.number_format import LEVEL, count, equation, params_text, percent, points
from sweeps.results.comparison import Comparison, Pair, Row


def difference(pair: Pair) -> float:
    """By how much the first row is better: accuracies pooled over tasks, or means of scores."""
    if pair.difference is not None:
        return pair.difference
    return (pair.b - pair.c) / pair.n if pair.n else 0.0


def flipped(pair: Pair) -> Pair:
    """The same test with the two rows exchanged."""
    change = None if pair.difference is None else -pair.difference
    return Pair(pair.second, pair.first, pair.n, pair.c, pair.b, pair.p, pair.p_holm, change)


def oriented(comparison: Comparison) -> dict[tuple[str, str], Pair]:
    """Each pair in both orders."""
    both = [each for pair in comparison.pairs for each in (pair, flipped(pair))]
    return {(pair.first, pair.second): pair for pair in both}


def contradicts(comparison: Comparison, pair: Pair) -> bool:
    """Whether the pooled difference and that of the means over tasks have opposite signs."""
    if pair.difference is not None:
        return False
    means = {row.method: row.test.get(comparison.headline) for row in comparison.rows}
    first, second = means.get(pair.first), means.get(pair.second)
    return first is not None and second is not None and (first - second) * difference(pair) < 0


def sentence(pair: Pair) -> str:
    """`ties vs wise_ft: +1.2 pp, p = 0.030 → not significant after Holm (p = 0.40)`."""
    if pair.p_holm < LEVEL:
        end = f"significant after Holm ({equation(pair.p_holm)})"
    elif pair.p < LEVEL:
        end = f"not significant after Holm ({equation(pair.p_holm)})"
    else:
        end = "not significant"
    return (
        f"{pair.first} vs {pair.second}: {points(difference(pair))} pp, {equation(pair.p)} → {end}"
    )


def sentences(comparison: Comparison) -> list[dict[str, Any]]:
    """Sentences on the best row against every other one, methods first."""
    best, pairs = comparison.best, oriented(comparison)
    others = [row.method for row in comparison.ranked]
    found = [pairs[best.method, name] for name in others if best and (best.method, name) in pairs]
    return [
        {
            "text": sentence(pair),
            "significant": pair.p_holm < LEVEL,
            "contradicts": contradicts(comparison, pair),
        }
        for pair in found
    ]


def matrix(comparison: Comparison) -> dict[str, Any] | None:
    """Matrix of row minus column, above the diagonal: the better row is above.

    None if there is nothing to compare.
    """
    pairs = oriented(comparison)
    tested = {name for key in pairs for name in key}
    names = [row.method for row in comparison.ranked if row.method in tested]
    if not names:
        return None
    lines = [
        (
            name,
            [None] * i + [matrix_cell(comparison, pairs[name, other]) for other in names[i + 1 :]],
        )
        for i, name in enumerate(names[:-1])
    ]
    return {"columns": names[1:], "lines": lines}


def matrix_cell(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """One pair: difference, adjusted p, direction."""
    change = difference(pair)
    style = "tie" if pair.p_holm >= LEVEL else "better" if change > 0 else "worse"
    return {
        "difference": points(change),
        "p": equation(pair.p_holm).replace("p = ", "").replace("p ", ""),
        "style": style,
        "contradicts": contradicts(comparison, pair),
        "title": f"{sentence(pair)}{counts(pair)}",
    }


def counts(pair: Pair) -> str:
    """Samples that only one of the rows has right; empty for a bootstrap."""
    if pair.difference is not None:
        return ""
    return f"; only {pair.first} right: {pair.b}, only {pair.second} right: {pair.c}, of {pair.n}"


def verdict(comparison: Comparison, tests: str = "paired tests below") -> list[str]:
    """Summary of the sweep in a few sentences; `tests`: where its paired tests are."""
    best = comparison.best
    if best is None:
        return ["No method has a successful trial yet."]
    tested = comparison.headline in best.test
    split = comparison.report_on if tested else comparison.select_on
    ci95 = best.test_ci95.get(comparison.headline)
    interval = f" [{percent(ci95[0])}, {percent(ci95[1])}]" if ci95 else ""
    named = f"{best.method} ({params_text(best.params)})" if best.params else best.method
    many, kind = len(comparison.seen), "seen tasks" if comparison.unseen else "tasks"
    average = f", averaged over {many} {kind}" if many > 1 else ""
    score = comparison.score(best)
    found = [
        f"{named} is best{'' if tested else ' so far'}: {percent(score)} %{interval} "
        f"on {split}{average}."
    ]
    found += [] if best.single else [f"It {several(best.method)}{price(best)}."]
    found += gap(comparison, best, tested)
    found += harm(comparison, best)
    found += generalisation(comparison, best)
    found += not_significantly_different(comparison, best, tests)
    return found + above(comparison, best)


def gap(comparison: Comparison, best: Row, tested: bool) -> list[str]:
    """Sentence: position of the best row between the pretrained model and the experts."""
    scores = {
        row.method: (row.test if tested else row.val).get(comparison.headline)
        for row in comparison.rows
        if row.method in REFERENCES
    }
    floor, ceiling = (scores.get(name) for name in REFERENCES)
    score = comparison.score(best)
    if floor is None or ceiling is None or ceiling <= floor or score is None:
        return []
    share = (score - floor) / (ceiling - floor)
    return [
        f"That is {100 * share:.0f} % of the way from the pretrained model ({percent(floor)} %) "
        f"to the experts, each on its own task ({percent(ceiling)} %)."
    ]


def generalisation(comparison: Comparison, best: Row) -> list[str]:
    """Sentence: score of the best row on unseen tasks, and the best row there."""
    unseen = comparison.value("unseen")
    rows = {row.method: row.test[unseen] for row in comparison.rows if unseen in row.test}
    floor, own = rows.pop("pretrained", None), rows.get(best.method)
    fused = {
        row.method: value
        for row in comparison.rows
        if not row.oracle and row.method != "experts" and (value := rows.get(row.method))
    }
    if floor is None or not fused:
        return []
    high = (max if comparison.ranked_by.larger_is_better else min)(fused.values())
    tops = [name for name, value in fused.items() if value == high]
    which = tops[0] if len(tops) == 1 else f"{len(tops)} rows"
    highest = f"the highest there is {percent(high)} % ({which})."
    names = ", ".join(comparison.unseen)
    if own is None:
        return [f"It is not measured on unseen tasks ({names}); {highest}"]
    here = f"On unseen tasks ({names}) it has {percent(own)} %, pretrained {percent(floor)} %"
    return [f"{here}." if best.method in tops else f"{here}; {highest}"]


def harm(comparison: Comparison, best: Row) -> list[str]:
    """Sentence: what merging made worse than the pretrained model: rows in the mean, tasks of the
    best row."""
    base = comparison.row("pretrained")
    floor = None if base is None else comparison.score(base)
    if base is None or floor is None or base is best:
        return []
    low = [
        row for row in comparison.methods
        if comparison.score(row) is not None
        and comparison.order(row) < comparison.order(base) and bool(row.test) == bool(base.test)
    ]  # fmt: skip
    names = ", ".join(row.method for row in low)
    said = []
    if best in low:
        said.append(f"no merge reaches the pretrained model ({percent(floor)} %)")
    elif low:
        said.append(f"below the pretrained model ({percent(floor)} %) in the mean: {names}")
    if tasks := sunken(comparison, best, base):
        shown = "; ".join(f"{t}, {percent(own)} against {percent(old)} %" for t, own, old in tasks)
        where = f"on {len(tasks)} of {len(comparison.tasks)} tasks ({shown})"
        than = "it" if said else "the pretrained model"
        said.append(f"{best.method} is below {than} {where}")
    return [f"Merging hurts: {', and '.join(said)}."] if said else []


def sunken(comparison: Comparison, row: Row, base: Row) -> list[tuple[str, float, float]]:
    """(task, score, the base's score) of the tasks on which a row is below the base."""
    found = []
    sign = 1.0 if comparison.ranked_by.larger_is_better else -1.0
    for task in comparison.tasks if len(comparison.tasks) > 1 else ():
        name = comparison.value(task)
        own, old = (each.test.get(name) if row.test else each.val.get(name) for each in (row, base))
        if own is not None and old is not None and sign * (own - old) < -1e-9:
            found.append((task, own, old))
    return found


def not_significantly_different(comparison: Comparison, best: Row, tests: str) -> list[str]:
    """Sentence: rows that do not differ significantly from the best one."""
    pairs = oriented(comparison)
    others = {
        row.method if not row.reference else f"the reference {row.method}": pairs[
            best.method, row.method
        ]
        for row in comparison.ranked
        if row.method not in REFERENCES and (best.method, row.method) in pairs
    }
    ties = [name for name, pair in others.items() if pair.p_holm >= LEVEL]
    if ties:
        return [f"The samples do not tell it from {', '.join(ties)} ({tests})."]
    if others:
        return [f"It differs significantly from every other method ({tests})."]
    return []


def above(comparison: Comparison, best: Row) -> list[str]:
    """Sentences: rows with more than the winner, and what they cost: the best one of several
    models, and references."""
    found = []
    top = comparison.top
    if top is not None and top is not best and comparison.order(top) > comparison.order(best):
        found.append(
            f"{top.method} has {percent(comparison.score(top))} %, but"
            f" {several(top.method)}{price(top)}; {best.method} is the best single model."
        )
    for row in comparison.references:
        score = comparison.score(row)
        if row.method in REFERENCES or score is None or bool(row.test) != bool(best.test):
            continue
        if comparison.order(row) > comparison.order(best) and not row.oracle:
            why = f"; it {several(row.method)}{price(row)}" if several(row.method) else ""
            found.append(f"The reference {row.method} has {percent(score)} %{why}.")
    return found


def several(method: str) -> str:
    """Why a method is not one model for all samples; empty if it is."""
    row = METHODS.get(method)
    if row is None or row.output == "one_model":
        return ""
    if row.output == "model_per_task":
        return "is one model a task"
    if row.output == "model_per_sample":
        return "is one model a sample"
    if "inputs" in row.reads:
        return "has a module a task"
    if row.fits:
        return "is fitted to embeddings, task by task"
    return "runs every expert on each input"


def price(row: Row) -> str:
    """`: 8 models in memory, 8 forward passes an input`; empty where it was not recorded."""
    models, passes = row.cost.get("models"), row.cost.get("passes")
    if models is None or passes is None:
        return ""
    held = count(models, "model") if isinstance(models, int) else f"{models:.1f} models"
    runs = f"{passes:g} forward pass{'' if passes == 1 else 'es'}"
    return f": {held} in memory, {runs} an input"
