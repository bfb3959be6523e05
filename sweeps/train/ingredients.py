"""Files of `sweeps train`: results of trials, and the best models of each task.

`<out>/trained/<task>-<key>.json` is a trial's result, which stays; `<out>/trained/<key>/` its
models, until they are moved to where they are kept, or deleted. One trial makes up to three
models, its *ingredients*: the fine-tuned one, and averages along the run (`ema`, `swa`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Required, TypeAlias

from pydantic import ConfigDict
from typing_extensions import TypedDict

from actors.artifacts.head_file import FILE as HEAD
from actors.artifacts.head_file import HeadKind, head_facts
from actors.files.documents import checked, dump_yaml, parse_json, read_bytes, read_json, read_yaml
from actors.files.paths import Plain
from actors.training.optimizer_loop import beside
from fusion.errors import InputError
from sweeps.results.ledger import write_text

Keep: TypeAlias = Literal["best", "all"] | int
"""Number of ingredients of a task that are kept; `best`: one, as the task's expert."""

KINDS = ("expert", "ema", "swa")


class Made(TypedDict, total=False):
    """One model of a trial."""

    kind: Required[Literal["expert", "ema", "swa"]]
    select: Required[float]
    report: Required[float]
    sha256: str
    head: str


@dataclass(frozen=True)
class Trained:
    """Result of one fine-tuning that ended, or was stopped by a scheduler."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: Plain
    task: Plain
    params: Mapping[str, Any]
    select: float
    """The task's metric on the select split; if the trial was stopped, at that time."""
    report: float | None
    """The same on the report split; None: the trial was stopped."""
    seconds: float
    seed: int = 0
    context: str = ""
    """Everything but parameters that the result depends on; part of the key."""
    stopped: int = 0
    """Rung at which a scheduler stopped the trial; 0: it completed."""
    rungs: Mapping[str, float] = field(default_factory=dict)
    """Rung -> intermediate score on select."""
    made: Sequence[Mapping[str, Any]] = ()
    """`{kind, select, report, sha256, head}` of each ingredient; the select rows chose none."""
    schedule: Sequence[Mapping[str, Any]] = ()
    """For a member of a population: first step, weights and values of each interval."""


@dataclass(frozen=True)
class Ingredient:
    """One model that a trial made."""

    task: str
    key: str
    kind: str
    params: Mapping[str, Any]
    seed: int
    select: float
    report: float
    sha256: str
    """SHA-256 of its weights; empty: unknown (written by an older version)."""
    head: str = ""
    """Identity of the head that it was tuned under; empty: unknown."""
    seconds: float = 0.0
    """Seed of the trial's training."""
    twins: tuple[str, ...] = ()
    """Names of other ingredients with exactly the same weights."""
    schedule: Sequence[Mapping[str, Any]] = ()
    """See `Trained`."""

    @property
    def tuned_under(self) -> HeadKind:
        """Kind of its head, which is a hyper-parameter."""
        kind: HeadKind = self.params.get("head", "zero_shot")
        return kind

    @property
    def folder(self) -> str:
        """Name of its folder: `<key>`, `<key>-ema` or `<key>-swa`."""
        return self.key if self.kind == "expert" else f"{self.key}-{self.kind}"

    @property
    def name(self) -> str:
        """Its name in a pool."""
        return f"{self.task}-{self.folder}"


def result_file(out: Path, task: str, key: str) -> Path:
    """File of a trial's result."""
    return out / "trained" / f"{task}-{key}.json"


def write_result(out: Path, result: Trained) -> None:
    """Write a result atomically."""
    text = json.dumps(asdict(result), indent=1)
    write_text(result_file(out, result.task, result.key), text)


def read_results(out: Path, task: str) -> list[Trained]:
    """All results of a task, in the order of their keys.

    A damaged file is ignored with a warning: its trial runs again.
    """
    found = []
    for path in sorted((out / "trained").glob(f"{task}-*.json")):
        try:
            content = parse_json(read_bytes(path), str(path), finite=False)
            result = checked(Trained, content, str(path))
            checked(list[Made], list(result.made), f"{path}: made")
            if result_file(out, result.task, result.key) != path:
                raise InputError(f"{path}: of {result.task!r}, {result.key!r}: not the file's name")
        except InputError as error:
            logging.getLogger(__name__).warning("%s; its fine-tuning counts as not run", error)
            continue
        if result.task == task:  # the pattern also matches longer names of tasks
            found.append(result)
    return found


def ingredients(results: Iterable[Trained]) -> list[Ingredient]:
    """Models of ended trials, in the order of the trials."""
    found = []
    for each in results:
        made = each.made or [
            {"kind": "expert", "select": each.select, "report": each.report, "sha256": ""}
        ]
        if not each.stopped:
            found += [
                Ingredient(
                    each.task,
                    each.key,
                    params=each.params,
                    seed=each.seed,
                    seconds=each.seconds,
                    schedule=each.schedule,
                    **one,
                )
                for one in made
            ]
    return found


def chosen(results: Iterable[Trained], keep: Keep) -> list[Ingredient]:
    """The ingredients of one task to keep: the best on select; ties go to the first.

    Ingredients with the same weights (and head) count once: the first is kept and names the others.
    """
    ranked = sorted(ingredients(results), key=lambda each: -each.select)
    kept: list[Ingredient] = []
    first: dict[tuple[str, str], int] = {}
    for each in ranked:
        at = first.setdefault((each.sha256 or each.name, each.head), len(kept))
        if at == len(kept):
            kept.append(each)
        else:
            kept[at] = replace(kept[at], twins=(*kept[at].twins, each.name))
    return kept[: 1 if keep == "best" else None if keep == "all" else keep]


def made_at(out: Path, each: Ingredient) -> Path:
    """Folder in which a trial writes an ingredient."""
    place = out / "trained" / each.key / "expert"
    return place if each.kind == "expert" else beside(place, each.kind)


def home(out: Path, each: Ingredient, keep: Keep) -> Path:
    """Folder in which an ingredient is kept."""
    if keep == "best":
        return out / "experts" / each.task
    return out / "ingredients" / each.task / each.folder


def head_file(out: Path, task: str, kind: HeadKind) -> Path:
    """File of a task's head of a kind; copies are beside the weights tuned under it."""
    return out / "heads" / task / f"{kind}.safetensors"


def is_there(out: Path, each: Ingredient, keep: Keep) -> bool:
    """Whether its weights exist, where they were made or where they are kept."""
    return made_at(out, each).is_dir() or holds(home(out, each, keep), each)


def holds(place: Path, each: Ingredient) -> bool:
    """Whether a folder holds this ingredient, by its recipe; a folder without recipe is older."""
    if not place.is_dir():
        return False
    file = place / "recipe.yaml"
    if not file.exists():
        return True
    try:
        recipe = read_yaml(file)
    except InputError:
        return False
    stored = recipe if isinstance(recipe, dict) else {}
    return (stored.get("key"), stored.get("kind")) == (each.key, each.kind)


def settle(out: Path, results: Sequence[Trained], keep: Keep, about: Mapping[str, Any]) -> None:
    """Move one task's kept ingredients to their folders; delete those of its other trials.

    Called after every trial, to bound the disk; a repeated call changes nothing.

    Args:
        out: the folder of the training.
        results: results of the task.
        keep: number of ingredients to keep.
        about: fields of every recipe: `base`, `defaults` of hyper-parameters, and `start` where
            fine-tunings start from another model than the base.
    """
    stay = chosen(results, keep)
    for each in stay:
        place, made = home(out, each, keep), made_at(out, each)
        if made.is_dir():
            write_papers(made, each, about)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
        elif place.is_dir():
            write_papers(place, each, about)
    for each in ingredients(results):
        place = home(out, each, keep)
        if keep != "best" and each.folder not in {one.folder for one in stay} and place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
    for result in results:
        shutil.rmtree(out / "trained" / result.key, ignore_errors=True)


def write_papers(place: Path, each: Ingredient, about: Mapping[str, Any]) -> None:
    """Write `recipe.yaml` and `scores.json` beside the weights; scores on shift sets are kept."""
    recipe = {
        "task": each.task,
        "key": each.key,
        "kind": each.kind,
        "params": {**about["defaults"], **each.params},
        "seed": each.seed,
        "base": about["base"],
        **({"start": about["start"]} if "start" in about else {}),
        "sha256": each.sha256,
        **head_entry(place / HEAD),
        **({"schedule": [dict(part) for part in each.schedule]} if each.schedule else {}),
        "code": version("fusion-sweeps"),
        "twins": list(each.twins),
    }
    write_text(place / "recipe.yaml", dump_yaml(recipe))
    scores = read_scores(place)
    scores |= {"select": each.select, "report": each.report}
    write_text(place / "scores.json", json.dumps({"shifts": {}, **scores}, indent=1))


def head_entry(file: Path) -> dict[str, Any]:
    """`head` of a recipe: kind of the head, and the order of its classes."""
    if not file.exists():
        return {}
    facts, _ = head_facts(file)
    strength = {} if facts.C is None else {"C": facts.C}
    stored = {"kind": facts.kind, "identity": facts.identity, **strength}
    return {"head": {**stored, "classnames": list(facts.classnames)}}


class Scores(TypedDict, total=False):
    """Content of an ingredient's `scores.json`."""

    select: float
    report: float
    shifts: dict[str, Any]


def read_scores(place: Path) -> dict[str, Any]:
    """Read an ingredient's `scores.json`; empty if it is missing or damaged."""
    try:
        content = read_json(place / "scores.json")
        return dict(checked(Scores, content, "scores.json"))
    except InputError:
        return {}
