"""Query the nodes of a cluster: GPUs, versions, the project's code, and which files they see.

One Ray task runs on each node. It reserves no GPU, and its process ends with it, so that no CUDA
context stays behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.limits import gpu_sizes, limits
from fusion.errors import InputError

PATIENCE = 60.0
"""Seconds for nodes to answer."""

PACKAGES = ("torch", "transformers", "numpy", "ray")
"""Other versions of these compute other bits, or fail."""

CODE = ("fusion", "actors", "sweeps")


@dataclass(frozen=True)
class Found:
    """Properties of one node."""

    gpus: tuple[int, ...]
    """Bytes of each GPU that torch sees."""
    versions: Mapping[str, str]
    """Of `PACKAGES`, and `code`: hash of the project's own files."""
    sees: frozenset[str]
    """Those of the files asked for that are there."""
    memory: int | None = None
    """Bytes that cgroups, ulimits and what else runs leave there; None: it was not asked."""


def look(files: Sequence[str], gpus: bool) -> Found:
    """Properties of this node; runs there. `gpus`: whether to query torch, which takes seconds."""
    return Found(
        tuple(gpu_sizes()) if gpus else (),
        versions(),
        frozenset(file for file in files if Path(file).exists()),
        limits().memory,
    )


@cache
def versions() -> Mapping[str, str]:
    """Versions of the packages that results depend on, and the hash of the project's code."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return {**found, "code": code_hash(Path(__file__).parents[2])}


def code_hash(root: Path) -> str:
    """Hash (8 hex digits) of all Python files of the project's packages under `root`."""
    digest = hashlib.sha256()
    for package in CODE:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def ask(
    nodes: Mapping[str, bool], files: Iterable[str] = (), patience: float = PATIENCE
) -> dict[str, Found]:
    """Properties of these nodes; nodes that die or do not answer in time are left out.

    Args:
        nodes: id -> whether the node has GPUs.
        files: paths to look for on each node.
        patience: seconds to wait for all answers.

    Raises:
        InputError: the project is not installed on a node.
    """
    wanted = list(files)
    asked = {
        ray.remote(num_cpus=0, max_calls=1, max_retries=0)(look)
        .options(
            name="look at node",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            # Otherwise Ray may hide all GPUs from a worker that reserved none.
            runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}} if gpus else None,
        )
        .remote(wanted, gpus): node
        for node, gpus in nodes.items()
    }
    done, late = (
        ray.wait(list(asked), num_returns=len(asked), timeout=patience) if asked else ([], [])
    )
    for ref in late:
        ray.cancel(ref, force=True)
    found = {}
    for ref in done:
        try:
            found[asked[ref]] = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ImportError) or "No module named" in str(error):
                raise InputError(
                    f"node {address(asked[ref])}: the project cannot be imported there"
                    f" ({last_line(error)}); install it (cluster.yaml, setup_commands), or start"
                    " the sweep by sweeps/launch.py, which sends the code along"
                ) from None
            raise
        except ray.exceptions.RayError:
            continue  # the node has just died
    return found


def check_same(found: Mapping[str, Found]) -> None:
    """Raise InputError where a node has another version of the code or of a package than here."""
    here = versions()
    for node, there in found.items():
        for name, wanted in here.items():
            if there.versions.get(name) != wanted:
                what = "the project's code" if name == "code" else name
                raise InputError(
                    f"node {address(node)}: {what} is {there.versions.get(name)}, the driver's is"
                    f" {wanted}: results would differ; install the same there (`ray up` does), or"
                    " start the sweep by sweeps/launch.py, which sends the code along"
                )


def address(node: str) -> str:
    """Address of a node, for messages; its id if it is gone."""
    known = {each["NodeID"]: each["NodeManagerAddress"] for each in ray.nodes()}
    return str(known.get(node, node))


def own_id() -> str:
    """The id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def last_line(error: BaseException) -> str:
    """The last line of an error, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def read_from(nodes: Iterable[str], found: Mapping[str, Found], files: Sequence[str]) -> list[str]:
    """The nodes among those given that see all these files; else this one, the driver's.

    >>> there = Found((), {}, frozenset({"a", "b"}))
    >>> read_from(["n1", "n2"], {"n1": there}, ["a", "b"])
    ['n1']
    """
    return seeing(nodes, found, files) or [own_id()]


def seeing(nodes: Iterable[str], found: Mapping[str, Found], files: Sequence[str]) -> list[str]:
    """The nodes among those given that see all these files."""
    return [node for node in nodes if node in found and found[node].sees.issuperset(files)]
