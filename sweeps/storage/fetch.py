"""Fetch a sweep from durable storage and merge it with the local folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from actors.artifacts.learned_file import unpacked
from actors.files.atomic import replacing
from actors.files.documents import checked, read_bytes
from actors.files.paths import listed as listed_path
from fusion.errors import InputError
from sweeps.results.folder import (
    Identity,
    SweepFolder,
    aside_suffix,
    check_known,
    parse_identity,
    read_identity,
)
from sweeps.results.ledger import parse_entry
from sweeps.results.owner import FILE as OWNER
from sweeps.results.owner import Owner, read_owner
from sweeps.results.trial_state import State
from sweeps.storage.store import FILES, OURS, Stamp, Store, guarded

Signature: TypeAlias = tuple[int, int]
"""Size and modification time (ns) of a file here."""

Sent: TypeAlias = dict[str, Signature | None]
"""Name -> what the file here was like when its content was known to be on the storage; None: it is
there, with another content."""

AT_ONCE = 32
"""Learned files read at a time: each may take megabytes."""


def check_there(
    store: Store,
    folder: SweepFolder,
    spec_hash: str,
    spec_text: str,
    *,
    resume: bool,
    fresh: bool,
    extend: bool,
) -> None:
    """The checks of `check_free` on the storage; reads only.

    Raises:
        InputError: another driver runs the sweep, the storage holds another sweep of its name, or
            see `check_known`.
    """
    check_unowned(store)
    if fresh or (data := guarded(store, lambda: store.read("sweep.json"))) is None:
        return
    there = parse_identity(data, f"{store.url}/sweep.json")
    here = read_identity(folder) if folder.identity.exists() else None
    if later(here, there, store, folder) is there:
        old = guarded(store, lambda: store.read(there.spec_file)) or b""
        count = sum(name.startswith("ledger/") for name in guarded(store, store.list))
        check_known(
            store.url,
            there,
            old.decode(errors="replace"),
            count,
            spec_hash,
            spec_text,
            resume=resume or extend,
            extend=extend,
        )


def check_unowned(store: Store, but: str = "") -> None:
    """Refuse a sweep that another driver is running.

    Raises:
        InputError: who runs it, and since when.
    """
    owner = owner_there(store)
    if owner is not None and owner.alive and owner.driver != but:
        raise InputError(
            f"{store.url}: another driver is running this sweep ({owner.words()}; last sign of "
            f"life {owner.age:.0f} s ago); stop it there, or wait until it has given none for "
            "2 minutes"
        )


def owner_there(store: Store) -> Owner | None:
    """The last driver of the sweep on a storage."""
    return read_owner(guarded(store, lambda: store.read(OWNER)))


def later(here: Identity | None, there: Identity, store: Store, folder: SweepFolder) -> Identity:
    """The state of a sweep that has been extended more often; the local one if equal.

    Raises:
        InputError: they are two sweeps, or each was extended without the other.
    """
    if here is None:
        return there
    if here.sweep_id != there.sweep_id:
        raise InputError(
            f"{store.url}: holds another sweep (id {there.sweep_id[:8]}) than {folder.path} "
            f"(id {here.sweep_id[:8]}); give another name or storage, or use --fresh"
        )
    pairs = [
        [(each["spec_hash"], each["started"]) for each in each.history] for each in (here, there)
    ]
    if any(mine != theirs for mine, theirs in zip(*pairs, strict=False)):
        raise InputError(
            f"{store.url}: was extended otherwise than {folder.path}; move one of them aside"
        )
    return there if len(pairs[1]) > len(pairs[0]) else here


def take_up(store: Store, folder: SweepFolder, *, fresh: bool) -> Sent:
    """Fetch what the folder lacks from the storage; returns what is known to be there.

    Of a trial known on both sides a success counts, then the later end; what it learned goes with
    it. Of a trial that has not ended the checkpoint with more steps counts. With `fresh`, what is
    there is moved aside.

    Raises:
        InputError: another driver has begun to run it, or the storage gives no answer.
    """
    check_unowned(store)
    data = guarded(store, lambda: store.read("sweep.json"))
    if data is None:
        return dict.fromkeys(guarded(store, store.list))
    if fresh:
        guarded(store, lambda: store.aside(aside_suffix()))
        return {}
    there = parse_identity(data, f"{store.url}/sweep.json")
    here = read_identity(folder) if folder.identity.exists() else None
    listed = guarded(store, store.list)
    sent: Sent = dict.fromkeys(listed)
    wanted = [name for name in listed if not place_of(folder, name, store.url).exists()]
    if later(here, there, store, folder) is there and here is not None:
        wanted += [name for name in ("spec.yaml", "sweep.json") if name in listed]
    won = fetch_ledger(store, folder, listed, sent)
    ended = set(folder.ledger.done())
    chosen = [
        name
        for name in dict.fromkeys([*wanted, *(n for n in listed if n.startswith("learned/"))])
        if not name.startswith("ledger/") and is_wanted(name, name in wanted, won, ended)
    ]
    # The identity last: a folder that has one has all that it counts on.
    chosen.sort(key=lambda name: name == "sweep.json")
    for start in range(0, len(chosen), AT_ONCE):
        part = chosen[start : start + AT_ONCE]
        contents = guarded(store, lambda part=part: store.read_all(part))  # type: ignore[misc]
        for name in part:
            path = place_of(folder, name, store.url)
            if name in contents and is_better(name, contents[name], path):
                sent[name] = put(path, contents[name])
    for name in listed:
        path = place_of(folder, name, store.url)
        if sent[name] is None and is_same(path, listed[name], sent):
            sent[name] = signature(path)
    return sent


def is_same(path: Path, stamp: Stamp, sent: Sent) -> bool:
    """Whether a trial's learned file is the same on both sides: equal ledger entry and size."""
    if path.parent.name != "learned" or path.suffix != ".safetensors" or not path.exists():
        return False
    return sent.get(f"ledger/{path.stem}.json") is not None and stamp[0] == str(path.stat().st_size)


def fetch_ledger(store: Store, folder: SweepFolder, listed: Iterable[str], sent: Sent) -> set[str]:
    """Fetch ledger entries that take precedence over the local ones; returns their keys."""
    won = set()
    names = [name for name in listed if name.startswith("ledger/")]
    for name, data in guarded(store, lambda: store.read_all(names)).items():
        path = place_of(folder, name, store.url)
        mine = read_bytes(path) if path.exists() else b""
        if data == mine:
            sent[name] = signature(path)
        elif rank(data, path.name) > rank(mine, path.name):
            sent[name] = put(path, data)
            won.add(path.stem)
    return won


def place_of(folder: SweepFolder, name: str, where: str) -> Path:
    """Local path of a file of a storage or of another machine.

    Raises:
        InputError: it is listed under a name that no sweep gives its files.
    """
    return listed_path(folder.path, name, where, {"": (*FILES, OWNER), **OURS})


def rank(entry: bytes, name: str) -> tuple[bool, str]:
    """Precedence of an entry: success first, then the later end; lowest: no entry.

    A damaged one, and one of another trial than its name says, is none.
    """
    try:
        found = parse_entry(entry, name, name)
    except InputError:
        return False, ""
    return found.status != "failed", found.ended


def is_wanted(name: str, absent: bool, won: set[str], ended: set[str]) -> bool:
    """Whether a file of the storage is to be read; for learned files, see `take_up`."""
    path = Path(name)
    if path.parent.name != "learned":
        return absent
    if path.suffix == ".state":
        return path.stem not in ended
    return absent or path.stem in won


def is_better(name: str, data: bytes, path: Path) -> bool:
    """Whether a checkpoint has more steps than the local one; other files were chosen before."""
    if not name.endswith(".state") or not path.exists():
        return True
    return steps(data) > steps(path.read_bytes())


def steps(checkpoint: bytes) -> int:
    """Steps in a checkpoint; -1 if it is damaged."""
    try:
        return checked(State, unpacked(checkpoint, "state", "checkpoint")[1], "checkpoint").step
    except InputError:
        return -1


def put(path: Path, data: bytes) -> Signature:
    """Write a file atomically; returns its signature."""
    with replacing(path) as part:
        part.write_bytes(data)
    return signature(path)


def signature(path: Path) -> Signature:
    """Size and modification time of a file."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns
