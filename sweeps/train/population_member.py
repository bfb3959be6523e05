"""One member of a population (PBT) as a Tune trial: intervals of training, each with its own rates.

A *leg* is a share of a run's steps under one set of hyper-parameters. What a model is follows from
its *chain* of legs and from nothing else: `<folder>/<n>-<hash of the chain>.json` is what its n-th
leg scored, `….pt` the state that the next goes on from. So a population that is run again only
trains legs that have no score yet, and a state that is gone is made again from its chain.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ray import tune
from torch import Tensor
from typing_extensions import TypedDict

from actors.artifacts.head_file import FILE as HEAD
from actors.artifacts.head_file import read_head
from actors.data.task_rows import TaskData
from actors.families.registry import trained_family
from actors.files.atomic import replacing
from actors.files.documents import checked, parse_json, read_bytes
from actors.files.paths import Plain
from fusion.errors import InputError
from sweeps.results.ledger import write_text
from sweeps.spec.trial_key import digest
from sweeps.train.heads import given_head
from sweeps.train.ingredients import Trained, read_results, write_result
from sweeps.train.population_spec import LEGS
from sweeps.train.trial import accuracy, made_by, rows_of, seed_of

Leg: TypeAlias = Mapping[str, Any]
"""`member` that ran it, its `seed`, `params`: all that the leg's steps depend on."""

CHAIN = "chain.json"


class Step(TypedDict):
    """A `Leg`, in a file."""

    member: Plain
    seed: int
    params: dict[str, Any]


class Reached(TypedDict):
    """What a member's checkpoint holds: its chain, and why it failed if it did."""

    chain: list[Step]
    reason: str


class Measured(Step):
    """What is kept of a leg."""

    select: float | None
    seconds: float
    before: str | None
    """The file of the leg before."""


class LegEnded(Exception):
    """Not a fault: ends a fine-tuning at the end of a leg that is not the last."""


class StateLost(Exception):
    """A leg's state could not be read, or went away: it is made again."""


def legs_in(steps: int) -> int:
    """How many legs a run has."""
    return min(LEGS, steps)


@dataclass(frozen=True)
class Ground:
    """Where the members of one population train, and on what."""

    base: Path
    task: TaskData
    context: str
    """What results depend on besides hyper-parameters."""
    out: Path
    device: str
    steps: int
    """Of a run."""
    member: str
    """Whose process this is."""

    @property
    def legs(self) -> int:
        """Of a run."""
        return legs_in(self.steps)

    @property
    def place(self) -> Path:
        """Where the member leaves its model."""
        return self.out / "trained" / self.member / "expert"

    @property
    def folder(self) -> Path:
        """Of the population."""
        return population_folder(self.out, self.task.name, self.context)

    def file(self, chain: Sequence[Leg], suffix: str) -> Path:
        """What is kept of a chain's last leg."""
        return self.folder / f"{len(chain)}-{digest([self.context, self.steps, chain])}{suffix}"


def population_folder(out: Path, task: str, context: str) -> Path:
    """Where legs of a task's population are kept."""
    return out / "trained" / f"population-{task}-{digest(context)}"


def member_trial(
    config: Mapping[str, Any],
    folder: Path,
    data: Mapping[str, TaskData],
    contexts: Mapping[str, str],
    out: Path,
    device: str,
    members: Mapping[str, Mapping[str, Any]],
    steps: int,
    names: Sequence[str],
) -> None:
    """Train legs from where the population put this member, reporting after each.

    A fine-tuning that fails reports NaN from there on, and its reason: it is copied by none, and
    the others need not wait for it. `names` are the hyper-parameters that a population changes.
    """
    member = tune.get_context().get_trial_name()
    own = members[member]
    task = data[own["task"]]
    ground = Ground(folder, task, contexts[task.name], out, device, steps, member)
    chain, reason = resumed()
    leg = {"member": member, "seed": seed_of(own), "params": dict(config["trial"]["params"])}
    while len(chain) < ground.legs - 1:
        chain = [*chain, leg]
        score = math.nan
        if not reason:
            try:
                score = grown(ground, chain)["select"]
            except Exception as error:
                reason = words(error)
        reported({"select": score, "round": len(chain), "reason": reason}, chain)
    last = {"select": math.nan, "report": math.nan}
    if not reason:
        try:
            last = ended(ground, [*chain, leg], own, names)
        except Exception as error:
            reason = words(error)
    # Of the same round as before: nothing is copied any more.
    tune.report({**last, "round": ground.legs - 1, "reason": reason, "final": True})


def words(error: Exception) -> str:
    """A fault in one line, never empty."""
    said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return said.splitlines()[0]


def resumed() -> tuple[list[Leg], str]:
    """The chain that this member stands on, its own or another's, and why it failed if it did."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return [], ""
    with checkpoint.as_directory() as place:
        file = Path(place) / CHAIN
        found = checked(Reached, parse_json(read_bytes(file), str(file)), str(file))
    return [{**leg} for leg in found["chain"]], found["reason"]


def reported(result: Mapping[str, Any], chain: Sequence[Leg]) -> None:
    """Tell Tune of a leg; its checkpoint is the chain: weights stay in the sweep's folder."""
    with tempfile.TemporaryDirectory() as place:
        text = json.dumps({"chain": chain, "reason": result["reason"]})
        (Path(place) / CHAIN).write_text(text)
        about = {**result, "final": False}
        tune.report(about, checkpoint=tune.Checkpoint.from_directory(place))


def grown(ground: Ground, chain: Sequence[Leg]) -> Mapping[str, Any]:
    """What a chain's last leg scored, on select; trained where that is not known.

    When a leg of a round is trained, all members have ended the round before: states of rounds
    before that one are deleted.
    """
    file = ground.file(chain, ".json")
    if leg_at(file) is None:
        train(ground, chain)
        for state in ground.folder.glob("[1-9]*.pt"):
            if int(state.name.partition("-")[0]) < len(chain) - 1:
                state.unlink(missing_ok=True)
    found = leg_at(file)
    if found is None:
        raise InputError(f"{file}: goes away, or is damaged, while it is read")
    return dict(found)


def leg_at(file: Path) -> Measured | None:
    """What a leg scored; None where that is not known, or the file is damaged."""
    try:
        return checked(Measured, parse_json(read_bytes(file), str(file), finite=False), str(file))
    except InputError:
        return None


def train(ground: Ground, chain: Sequence[Leg]) -> None:
    """Train a chain's last leg from the state before it, which is made again where it is gone."""
    for _ in range(3):
        with suppress(StateLost):
            return once(ground, chain)
    raise InputError(f"{ground.folder}: states of fine-tunings go away while they are read")


def once(ground: Ground, chain: Sequence[Leg]) -> None:
    """`train`, which may find that the state before is not whole."""
    before, leg, clock = chain[:-1], chain[-1], time.perf_counter()
    last, state = len(chain) == ground.legs, ground.file(chain, ".pt")
    mine = ground.folder / f".{ground.member}-{state.name}"
    if not mine.exists():
        if state.exists():  # killed before its score was written
            copied(state, mine)
        elif before:
            if not ground.file(before, ".pt").exists():
                train(ground, before)
            copied(ground.file(before, ".pt"), mine)
    begin, end = len(before) / ground.legs, len(chain) / ground.legs
    under, given = heads(ground, leg)
    found = {"begun": not before, "select": math.nan}

    def look(share: float, embed: Callable[[Tensor], Tensor]) -> None:
        if share == end:
            found["select"] = accuracy(ground.task, under, embed)
            raise LegEnded
        found["begun"] = found["begun"] or share == begin

    def advance(step: int, total: int, loss: float) -> None:
        if not found["begun"]:  # the file was damaged, and the run has begun anew
            mine.unlink(missing_ok=True)
            ground.file(before, ".pt").unlink(missing_ok=True)
            raise StateLost

    images, labels = rows_of(ground.task, "fit")
    with suppress(LegEnded):
        trained_family().fine_tune(
            ground.base,
            images,
            labels,
            read_head(ground.task.head),
            ground.place,
            device=ground.device,
            state=mine,
            stops=[at / ground.legs for at in range(1, ground.legs)],
            look=look,
            advance=advance,
            **given,
            **{**leg["params"], "seed": leg["seed"]},
        )
    if not last:
        mine.replace(state)
    select = None if last else found["select"]
    about = {
        "select": select,
        "seconds": time.perf_counter() - clock,
        "before": ground.file(before, "").name if before else None,
        **leg,
    }
    write_text(ground.file(chain, ".json"), json.dumps(about, indent=1))


def copied(source: Path, target: Path) -> None:
    """Copy a state, whole or not at all; another process may delete it meanwhile."""
    try:
        with replacing(target) as part:
            shutil.copyfile(source, part)
    except FileNotFoundError:
        raise StateLost from None


def heads(ground: Ground, leg: Leg) -> tuple[Tensor, dict[str, Any]]:
    """The head that is tuned under, and what else `fine_tune` is told of it."""
    kind = leg["params"].get("head", "zero_shot")
    own = given_head(ground.out, ground.task.name, kind, ground.place.parent)
    under = read_head(ground.task.head if own is None else own)
    return under, {} if own is None or kind == "zero_shot" else {"probe": under}


def ended(
    ground: Ground, chain: Sequence[Leg], own: Mapping[str, Any], names: Sequence[str]
) -> dict[str, float]:
    """The last leg; models are left and the result is written, where it is not there."""
    task, member = ground.task, ground.member
    for known in read_results(ground.out, task.name):
        if known.key == member and known.report is not None:
            return {"select": known.select, "report": known.report}
    if not ground.place.is_dir():
        train(ground, chain)
    head = ground.place.with_name(HEAD)
    made = made_by(ground.base, task, ground.place, head if head.exists() else None, ground.device)
    files = [ground.file(chain[:n], ".json") for n in range(1, ground.legs)]
    result = Trained(
        member,
        task.name,
        own["params"],
        made[0]["select"],
        made[0]["report"],
        sum(about["seconds"] for file in files if (about := leg_at(file)) is not None),
        seed_of(own),
        ground.context,
        made=made,
        schedule=schedule(chain, names, ground.steps),
    )
    write_result(ground.out, result)
    return {"select": made[0]["select"], "report": made[0]["report"]}


def schedule(chain: Sequence[Leg], names: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """What a chain means: after which step, whose weights they were, and under which values.

    >>> legs = [{"member": "a", "seed": 1, "params": {"mixup": 0.1}}] * 2
    >>> legs += [{"member": "b", "seed": 2, "params": {"mixup": 0.2}}]
    >>> [tuple(part.values()) for part in schedule(legs, ["mixup"], 9)]
    [(0, 'a', 1, 0.1), (6, 'b', 2, 0.2)]
    """
    found: list[dict[str, Any]] = []
    for at, leg in enumerate(chain):
        about = {"of": leg["member"], "seed": leg["seed"], **{n: leg["params"][n] for n in names}}
        step = round(at / len(chain) * steps)
        if not found or found[-1] != {"step": found[-1]["step"], **about}:
            found.append({"step": step, **about})
    return found
