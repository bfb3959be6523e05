"""Resources that this process may use: memory, cores, processes and GPUs.

The limits of cgroups (v1 and v2, each level up to the root), ulimits and CPU affinity apply. In a
container, a Slurm job or a systemd unit, `/proc/meminfo` shows the whole host; the granted amount
is in the cgroup. Needs neither torch nor Ray, except that torch knows the GPUs.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from fusion.errors import InputError, one_line

ROOT = Path("/")

PIDS = 300
"""Processes and threads that the smallest Ray of one replica starts with."""

FILES = 512
"""Files that its busiest process has open."""

ADDRESSES = 4 * 2**30
"""Bytes of address space of its largest process, beside the object store."""


@dataclass(frozen=True)
class Bound:
    """One limit on memory, and its origin."""

    free: int
    """Bytes of it that are not in use."""
    total: int
    by: str
    """For messages; empty: the machine has no more."""


@dataclass(frozen=True)
class Limits:
    """Resources granted to this process and its children."""

    cpus: int
    """Whole cores; at least 1."""
    memory: int
    """Bytes that can still be taken."""
    total: int
    """Bytes in all, of the bound that leaves the least."""
    by: str = ""
    """What sets the bound on memory; empty: the machine has no more."""


def limits(root: Path = ROOT) -> Limits:
    """Read the current limits.

    Args:
        root: the folder that holds `/proc/self` and the cgroups.
    """
    least = min(bounds(root), key=lambda bound: bound.free)
    return Limits(cores(root), max(least.free, 0), least.total, least.by)


def cores(root: Path = ROOT) -> int:
    """Number of cores this process may use, rounded down; at least 1."""
    with_affinity = hasattr(os, "sched_getaffinity")
    found: list[float] = [len(os.sched_getaffinity(0)) if with_affinity else os.cpu_count() or 1]
    found.extend(map(quota, levels(root, "cpu")))
    for folder in levels(root, "cpuset"):
        names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
        listed = next((text for name in names if (text := read(folder / name))), "")
        found.append(listed_cpus(listed) or float("inf"))
    return max(int(min(found)), 1)


def bound_threads(root: Path = ROOT) -> None:
    """Limit the threads of torch, BLAS and Arrow where a cgroup grants fewer cores than it shows.

    Call it before they are imported. Values set by the user are kept.
    """
    if cores(root) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores(root)))


def bounds(root: Path = ROOT) -> Iterator[Bound]:
    """All limits on memory, the machine's first."""
    machine = psutil.virtual_memory()
    yield Bound(machine.available, machine.total, "")
    for folder in levels(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = number(read(folder / name))
            # Version 1 writes "no limit" as a number of 19 digits.
            if limit is not None and 0 <= limit < machine.total:
                yield Bound(limit - used(folder), limit, f"{folder / name}")
    for kind, name, taken in (
        (resource.RLIMIT_AS, "ulimit -v", "vms"),
        (resource.RLIMIT_DATA, "ulimit -d", "data"),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < machine.total:
            held = getattr(psutil.Process().memory_info(), taken, 0)
            yield Bound(limit - held, limit, name)


def used(folder: Path) -> int:
    """Bytes in use in a cgroup, without cached files, which are freed when memory is needed."""
    names = ("memory.current", "memory.usage_in_bytes")
    taken = next((n for name in names if (n := number(read(folder / name))) is not None), 0)
    stat = {}
    for line in read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        stat[name] = number(value) or 0
    # In version 1, names with this prefix include the levels below.
    prefix = "total_" if "total_inactive_file" in stat else ""
    cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active"))
    return max(taken - cached, 0)


def killed(root: Path = ROOT) -> int:
    """Number of processes killed for lack of memory in this cgroup (else on this machine)."""
    for folder in levels(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            count = field(read(folder / name), "oom_kill")
            if count is not None:
                return count
    return field(read(root / "proc/vmstat"), "oom_kill") or 0


def shortfalls(store_bytes: int, root: Path = ROOT) -> list[str]:
    """Resources that Ray needs to start and that are not granted, one phrase each."""
    found = []
    for kind, name, need in (
        (resource.RLIMIT_AS, "ulimit -v", ADDRESSES + store_bytes),
        (resource.RLIMIT_DATA, "ulimit -d", ADDRESSES),
        (resource.RLIMIT_FSIZE, "ulimit -f", store_bytes),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < need:
            found.append(f"{name} is {limit // 1024} kB, {-(-need // 1024)} needed")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # Ray raises the soft limit to it
    if hard != resource.RLIM_INFINITY and hard < FILES:
        found.append(f"ulimit -n is {hard}, {FILES} needed")
    for folder in levels(root, "pids"):
        most, there = number(read(folder / "pids.max")), number(read(folder / "pids.current"))
        if most is not None and (free := most - (there or 0)) < PIDS:
            found.append(f"{folder / 'pids.max'} leaves {free} processes, {PIDS} needed")
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != resource.RLIM_INFINITY and os.geteuid() and limit - threads() < PIDS:
        found.append(f"ulimit -u is {limit}, {PIDS} more processes and threads needed")
    return found


def threads() -> int:
    """Number of threads of this user's processes."""
    total, own = 0, os.geteuid()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            total += process.num_threads() if process.uids().effective == own else 0
    return total


def levels(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups that may limit this process, from its own up to the root."""
    own = memberships(root)
    for kind, source, mounted in mounts(root):
        if kind == "cgroup2":
            path = own.get("")
        else:
            path = own.get(controller) if controller in source else None
        if path is None:
            continue
        shown, at = mounted
        # Without its own namespace, a container sees the host's path here and in the mount table.
        inside = shown != "/" and f"{path}/".startswith(f"{shown}/")
        within = path.removeprefix(shown) if inside else path
        top = root / at.lstrip("/")
        folder = top / within.strip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = top
        while True:  # ends at the mount point, which is a parent of every path
            yield folder
            if folder == top:
                break
            folder = folder.parent


def memberships(root: Path) -> dict[str, str]:
    """Controller (version 2: empty) -> path of this process's cgroup."""
    found: dict[str, str] = {}
    for line in read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            found |= dict.fromkeys(parts[1].split(","), parts[2])
    return found


def mounts(root: Path) -> Iterator[tuple[str, list[str], tuple[str, str]]]:
    """cgroup mounts: kind, controllers, and (the cgroup at the mount point, the mount point)."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        about, _, rest = line.partition(" - ")
        fields, source = about.split(), rest.split()
        if len(fields) >= 5 and len(source) >= 3 and source[0] in ("cgroup", "cgroup2"):
            shown, at = (unescaped(each) for each in fields[3:5])
            yield source[0], source[2].split(","), (shown, at)


def unescaped(text: str) -> str:
    r"""Decode a path of mountinfo, which writes blanks in octal.

    >>> unescaped(r"/a\040b")
    '/a b'
    """
    for octal, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(octal, character)
    return text


def quota(folder: Path) -> float:
    """Number of cores that a cgroup's CPU quota grants; infinity: no limit."""
    words = read(folder / "cpu.max").split() or [
        read(folder / "cpu.cfs_quota_us").strip(),
        read(folder / "cpu.cfs_period_us").strip(),
    ]
    share, period = (number(word) for word in [*words, "100000"][:2])
    if share is None or share <= 0 or not period or period <= 0:
        return float("inf")
    return share / period


def listed_cpus(text: str) -> int:
    """Number of cores in a list of ranges; 0 if the text is not such a list.

    >>> listed_cpus("0-3,8,10-11"), listed_cpus(""), listed_cpus("none")
    (7, 0, 0)
    """
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        low, high = number(first), number(last or first)
        if low is None or high is None or high < low:
            return 0
        total += high - low + 1
    return total


def field(text: str, name: str) -> int | None:
    """The number that follows a name in a file of `name number` lines."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return number(words[1])
    return None


def number(text: str) -> int | None:
    """A whole number; None for `max` and for other text.

    >>> number("12 "), number("max"), number("-1")
    (12, None, -1)
    """
    return int(text) if re.fullmatch(r"\s*-?[0-9]{1,30}\s*", text) else None


def read(file: Path) -> str:
    """Content of a small system file; empty where it is missing or unreadable."""
    try:
        return file.read_text(errors="replace")
    except (OSError, ValueError):
        return ""


ANSWER = 60.0
"""Seconds for torch to say what GPUs have free."""

SIZES = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]))
"""
"""What is free of each GPU. To ask makes a CUDA context, which takes half a gigabyte of each for as
long as its process lives, so a process is started that lives no longer."""


def gpu_sizes() -> list[int]:
    """Free bytes of each GPU that this process may use.

    Raises:
        InputError: there are GPUs, but they cannot be queried.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-c", SIZES],
            capture_output=True, text=True, check=False, timeout=ANSWER,
        )  # fmt: skip
        return [int(size) for size in json.loads(done.stdout.splitlines()[-1])]
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        reason = one_line(error) if isinstance(error, subprocess.TimeoutExpired) else done.stderr
        said = (reason.strip().splitlines() or ["no answer"])[-1][:200]
        raise InputError(
            f"this machine's GPUs cannot be used: {said}; CUDA_VISIBLE_DEVICES= hides them"
        ) from None
