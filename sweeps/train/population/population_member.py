"""One member of a population (PBT) as a Tune trial: intervals of training, each with its own rates.

An *interval* is a share of a run's steps under one set of hyper-parameters. A model depends on
its *chain* of intervals only: `<folder>/<n>-<hash of the chain>.json` is the score of its n-th
interval, `….pt` the state from which the next one starts. So a population that runs again
trains only intervals without a score, and a missing state is computed again from its chain.
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
from actors.data.task_rows import Rows, TaskData
from actors.families.registry import training_at
from actors.files.atomic import replacing
from actors.files.documents import checked, parse_json, read_bytes
from actors.files.paths import Plain
from fusion.errors import InputError
from sweeps.results.ledger import write_text
from sweeps.spec.trial_key import digest
from sweeps.train.ingredients import Trained, read_results, write_result
from sweeps.train.inputs.heads import given_head
from sweeps.train.population.population_spec import INTERVALS
from sweeps.train.trial import made_by, scored, seed_of, words

Interval: TypeAlias = Mapping[str, Any]
"""`member` that ran it, its `seed`, `params`: all that the interval's steps depend on."""

CHAIN = "chain.json"


class Step(TypedDict):
    """An `Interval`, in a file."""

    member: Plain
    seed: int
    params: dict[str, Any]


class Reached(TypedDict):
    """Content of a member's checkpoint: its chain, and why it failed if it did."""

    chain: list[Step]
    reason: str


class Measured(Step):
    """Kept result of an interval."""

    select: float | None
    seconds: float
    before: str | None
    """The file of the interval before."""


class IntervalEnded(Exception):
    """Control flow, no error: ends a fine-tuning after an interval that is not the last."""


class StateLost(Exception):
    """An interval's state is missing or damaged: it must be computed again."""


def intervals_in(steps: int) -> int:
    """Number of intervals of a run."""
    return min(INTERVALS, steps)


@dataclass(frozen=True)
class MemberContext:
    """What the members of one population train on, and where."""

    start: Path
    """Folder of the model that training starts from."""
    task: TaskData
    fingerprint: str
    """Everything but hyper-parameters that results depend on."""
    out: Path
    device: str
    steps: int
    """Steps of a run."""
    member: str
    """Key of the member that this process runs."""

    @property
    def intervals(self) -> int:
        """Number of intervals of a run."""
        return intervals_in(self.steps)

    @property
    def place(self) -> Path:
        """Folder of the member's model."""
        return self.out / "trained" / self.member / "expert"

    @property
    def folder(self) -> Path:
        """Folder of the population."""
        return population_folder(self.out, self.task.name, self.fingerprint)

    def file(self, chain: Sequence[Interval], suffix: str) -> Path:
        """File of a chain's last interval."""
        return self.folder / f"{len(chain)}-{digest([self.fingerprint, self.steps, chain])}{suffix}"


def population_folder(out: Path, task: str, context: str) -> Path:
    """Folder of the intervals of a task's population."""
    return out / "trained" / f"population-{task}-{digest(context)}"


def member_trial(
    config: Mapping[str, Any],
    folders: Mapping[str, Path],
    data: Mapping[str, TaskData],
    contexts: Mapping[str, str],
    out: Path,
    device: str,
    members: Mapping[str, Mapping[str, Any]],
    steps: int,
    names: Sequence[str],
) -> None:
    """Train interval after interval, from the state that the scheduler chose, and report each.

    A fine-tuning that fails reports NaN and its reason from then on: no member copies it, and the
    others need not wait for it. `names` are the hyper-parameters that a population changes.
    """
    member = tune.get_context().get_trial_name()
    own = members[member]
    task = data[own["task"]]
    start = folders[task.name]
    context = MemberContext(start, task, contexts[task.name], out, device, steps, member)
    chain, reason = resumed()
    interval = {"member": member, "seed": seed_of(own), "params": dict(config["trial"]["params"])}
    while len(chain) < context.intervals - 1:
        chain = [*chain, interval]
        score = math.nan
        if not reason:
            try:
                score = grown(context, chain)["select"]
            except Exception as error:
                reason = words(error)
        reported({"select": score, "round": len(chain), "reason": reason}, chain)
    last = {"select": math.nan, "report": math.nan}
    if not reason:
        try:
            last = ended(context, [*chain, interval], own, names)
        except Exception as error:
            reason = words(error)
    # A repeated round: no state is copied any more.
    tune.report({**last, "round": context.intervals - 1, "reason": reason, "final": True})


def resumed() -> tuple[list[Interval], str]:
    """The chain that this member continues, its own or another's, and why it failed if it did."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return [], ""
    with checkpoint.as_directory() as place:
        file = Path(place) / CHAIN
        found = checked(Reached, parse_json(read_bytes(file), str(file)), str(file))
    return [{**interval} for interval in found["chain"]], found["reason"]


def reported(result: Mapping[str, Any], chain: Sequence[Interval]) -> None:
    """Report an interval to Tune; the checkpoint is the chain, without weights."""
    with tempfile.TemporaryDirectory() as place:
        text = json.dumps({"chain": chain, "reason": result["reason"]})
        (Path(place) / CHAIN).write_text(text)
        about = {**result, "final": False}
        tune.report(about, checkpoint=tune.Checkpoint.from_directory(place))


def grown(context: MemberContext, chain: Sequence[Interval]) -> Mapping[str, Any]:
    """Score on select of a chain's last interval; trains the interval if the score is unknown.

    When an interval of a round is trained, all members have completed the previous round, so states
    of earlier rounds are deleted.
    """
    file = context.file(chain, ".json")
    if interval_at(file) is None:
        train(context, chain)
        for state in context.folder.glob("[1-9]*.pt"):
            if int(state.name.partition("-")[0]) < len(chain) - 1:
                state.unlink(missing_ok=True)
    found = interval_at(file)
    if found is None:
        raise InputError(f"{file}: goes away, or is damaged, while it is read")
    return dict(found)


def interval_at(file: Path) -> Measured | None:
    """Score of an interval; None if it is missing or damaged."""
    try:
        return checked(Measured, parse_json(read_bytes(file), str(file), finite=False), str(file))
    except InputError:
        return None


def train(context: MemberContext, chain: Sequence[Interval]) -> None:
    """Train a chain's last interval from the state before it; a missing state is computed again."""
    for _ in range(3):
        with suppress(StateLost):
            return once(context, chain)
    raise InputError(f"{context.folder}: states of fine-tunings go away while they are read")


def once(context: MemberContext, chain: Sequence[Interval]) -> None:
    """Run `train`; the state before may turn out to be damaged."""
    before, interval, clock = chain[:-1], chain[-1], time.perf_counter()
    last, state = len(chain) == context.intervals, context.file(chain, ".pt")
    mine = context.folder / f".{context.member}-{state.name}"
    if not mine.exists():
        if state.exists():  # killed before its score was written
            copied(state, mine)
        elif before:
            if not context.file(before, ".pt").exists():
                train(context, before)
            copied(context.file(before, ".pt"), mine)
    begin, end = len(before) / context.intervals, len(chain) / context.intervals
    kind = interval["params"].get("head", "zero_shot")
    found = {"begun": not before, "select": math.nan}

    def judge(share: float, logits: Callable[[Rows], Tensor]) -> None:
        if share == end:
            found["select"] = scored(context.task, logits)
            raise IntervalEnded
        found["begun"] = found["begun"] or share == begin

    def advance(step: int, total: int, loss: float) -> None:
        if not found["begun"]:  # the file was damaged, and the run has started again
            mine.unlink(missing_ok=True)
            context.file(before, ".pt").unlink(missing_ok=True)
            raise StateLost

    with suppress(IntervalEnded):
        training = training_at(context.start)
        training.fine_tune(
            context.start,
            context.task,
            context.place,
            training.options(**{**interval["params"], "seed": interval["seed"]}),
            head=given_head(context.out, context.task.name, kind, context.place.parent),
            device=context.device,
            state=mine,
            stops=[at / context.intervals for at in range(1, context.intervals)],
            judge=judge,
            advance=advance,
        )
    if not last:
        mine.replace(state)
    select = None if last else found["select"]
    about = {
        "select": select,
        "seconds": time.perf_counter() - clock,
        "before": context.file(before, "").name if before else None,
        **interval,
    }
    write_text(context.file(chain, ".json"), json.dumps(about, indent=1))


def copied(source: Path, target: Path) -> None:
    """Copy a state file atomically; another process may delete it meanwhile."""
    try:
        with replacing(target) as part:
            shutil.copyfile(source, part)
    except FileNotFoundError:
        raise StateLost from None


def ended(
    context: MemberContext, chain: Sequence[Interval], own: Mapping[str, Any], names: Sequence[str]
) -> dict[str, float]:
    """After the last interval: write the models and the result, if they are missing."""
    task, member = context.task, context.member
    for known in read_results(context.out, task.name):
        if known.key == member and known.report is not None:
            return {"select": known.select, "report": known.report}
    if not context.place.is_dir():
        train(context, chain)
    head = context.place.with_name(HEAD)
    made = made_by(
        context.start, task, context.place, head if head.exists() else None, context.device
    )
    files = [context.file(chain[:n], ".json") for n in range(1, context.intervals)]
    result = Trained(
        member,
        task.name,
        own["params"],
        made[0]["select"],
        made[0]["report"],
        sum(about["seconds"] for file in files if (about := interval_at(file)) is not None),
        seed_of(own),
        context.fingerprint,
        made=made,
        schedule=schedule(chain, names, context.steps),
    )
    write_result(context.out, result)
    return {"select": made[0]["select"], "report": made[0]["report"]}


def schedule(chain: Sequence[Interval], names: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Description of a chain: after which step which weights and values were used.

    >>> intervals = [{"member": "a", "seed": 1, "params": {"mixup": 0.1}}] * 2
    >>> intervals += [{"member": "b", "seed": 2, "params": {"mixup": 0.2}}]
    >>> [tuple(part.values()) for part in schedule(intervals, ["mixup"], 9)]
    [(0, 'a', 1, 0.1), (6, 'b', 2, 0.2)]
    """
    found: list[dict[str, Any]] = []
    for at, interval in enumerate(chain):
        about = {
            "of": interval["member"],
            "seed": interval["seed"],
            **{n: interval["params"][n] for n in names},
        }
        step = round(at / len(chain) * steps)
        if not found or found[-1] != {"step": found[-1]["step"], **about}:
            found.append({"step": step, **about})
    return found
