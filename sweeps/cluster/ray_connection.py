"""Connect to Ray: a running cluster by address, or a new one on this machine's loopback.

Ray is imported inside functions: `stay_on_loopback` sets variables that Ray reads when it is
imported, and commands that need no cluster start faster.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from actors.cluster.limits import cores, gpu_sizes, limits, shortfalls
from actors.cluster.planner import Node, Resources, gigabytes
from fusion import outside_methods
from fusion.errors import InputError
from sweeps.cluster.probe_address import Address, check, given
from sweeps.cluster.ray_temp_dir import close_to_others, make_token, session_folder
from sweeps.console import signals

if TYPE_CHECKING:  # they import ray, which `stay_on_loopback` must come before
    from actors.cluster.nodes import Found
    from actors.pool.pool import Pool

log = logging.getLogger(__name__)

# Read by Ray when it is imported or started: no telemetry, no notices that are not the user's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Signals are ours (signals.py).
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# A trial that fails reports why, and no metric.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
# Without this setting, Ray repeats tasks that are killed for lack of memory forever.
os.environ.setdefault("RAY_task_oom_retries", "2")
# A /dev/shm smaller than the weights (containers: 64 MB) costs speed, not correctness.
os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")


RAY_BYTES = 800 * 2**20
"""Main memory of Ray's own processes on a machine, and of what the driver has still to import."""

SEEN: dict[tuple[str, ...], bool] = {}
"""(node, files of a pool) -> whether it sees them; each node is queried once."""


def stay_on_loopback(address: str | None) -> None:
    """Make a cluster of our own listen on 127.0.0.1 only; call before `ray` is imported.

    Ray's public arguments bind the dashboard there, but its servers to the host's address. On
    macOS and Windows Ray keeps to loopback; this variable asks for the same elsewhere.
    """
    if target(address) is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def this_machine() -> Resources:
    """Resources of a local cluster, within the limits of cgroups and ulimits."""
    gpus, granted = gpu_sizes(), limits()
    memory = max(granted.memory - RAY_BYTES, 0)
    bound = f"{granted.by} grants {gigabytes(granted.total)}" if granted.by else ""
    gpu_memory = min(gpus, default=0)
    node = Node(granted.cpus, len(gpus), memory, gpu_memory, "this machine", bound=bound)
    return Resources((node,))


def of_cluster(known: dict[str, Found] | None = None) -> Resources:
    """Resources of the connected cluster, node by node.

    Args:
        known: earlier reports of nodes, by id; new nodes are queried and added.

    Raises:
        InputError: the project is not installed on a node, or in another version (or torch, …).
    """
    import ray

    from actors.cluster.nodes import Found, ask, check_same

    known = {} if known is None else known
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    new = {id: bool(node["Resources"].get("GPU")) for id, node in alive.items() if id not in known}
    found = ask(new)
    check_same(found)
    known |= found
    silent = Found((), {}, frozenset())
    return Resources(
        tuple(
            Node(
                cpus=int(there.get("CPU", 0)),
                gpus=int(there.get("GPU", 0)),
                memory=least(
                    int(there.get("memory", 0) + there.get("object_store_memory", 0)),
                    known.get(id, silent).memory,
                ),
                gpu_memory=min(known.get(id, silent).gpus, default=0),
                name=node["NodeManagerHostname"],
                id=id,
                labels=node["Labels"],
            )
            for id, node in alive.items()
            for there in [node["Resources"]]
        )
    )


def least(reported: int, granted: int | None) -> int:
    """Memory of a node: Ray's value, or the node's limit if that is less.

    >>> least(8, None), least(8, 2)
    (8, 2)
    """
    return reported if granted is None else min(reported, granted)


def readers(pool: Pool, resources: Resources) -> tuple[list[str], list[str]]:
    """Nodes that read the weights: those that see all checkpoint files, largest memory first.

    Returns:
        Ids of those nodes (the driver's own where no other does), and names of the nodes that do
        not see the files and are sent the weights.
    """
    from actors.cluster.nodes import ask, own_id, read_from

    members = (pool.base, *pool.experts.values(), *pool.references.values())
    files = sorted({str(file) for each in members for file in each.fused_files})
    nodes = sorted(resources.nodes, key=lambda node: (not node.gpus, -node.memory))
    found = ask({node.id: False for node in nodes}, files)
    seeing = read_from([node.id for node in nodes], found, files)
    blind = [n.name or n.id for n in nodes if n.id not in seeing and n.id != own_id()]
    return seeing, blind


def narrowed(pool: Pool, resources: Resources) -> Resources:
    """The nodes that see the experts' files, for weights that are read during the whole sweep.

    Nodes without an id (this machine, before Ray is there; those of a `cluster.yaml`) are not
    asked.

    Args:
        pool: whose files.
        resources: what there is.

    Raises:
        InputError: no node sees them.
    """
    if not all(node.id for node in resources.nodes):
        return resources
    from actors.cluster.nodes import ask, seeing

    files = expert_files(pool)
    new = [node.id for node in resources.nodes if (node.id, *files) not in SEEN]
    found = ask(dict.fromkeys(new, False), files)
    SEEN.update({(id, *files): bool(seeing([id], found, files)) for id in found})
    nodes = tuple(node for node in resources.nodes if SEEN.get((node.id, *files)))
    if not nodes:
        names = ", ".join(node.name or node.id for node in resources.nodes[:5])
        folder = next(iter(pool.experts.values())).folder
        raise InputError(
            f"placement.weights: 'files': no node ({names}) sees all experts' files ({folder}, …):"
            " share that folder with them, or use placement.weights: memory"
        )
    return Resources(nodes)


def expert_files(pool: Pool) -> list[str]:
    """Weight files of all experts, in order."""
    members = pool.experts.values()
    return sorted({str(file) for each in members for file in each.fused_files})


def target(address: str | None) -> Address | None:
    """The cluster to use: `--address`, else `$RAY_ADDRESS`; None: start a local one."""
    return given(address)


@contextmanager
def connected(address: Address | None, store_bytes: int) -> Iterator[str]:
    """Connect to Ray for a block. A cluster started here is stopped at its end; another one keeps
    running.

    Args:
        address: as `target` gives it; None: a cluster of our own is started.
        store_bytes: of its object store.

    Yields:
        The dashboard's address; empty if there is no dashboard.

    Raises:
        InputError: no cluster at that address, or none can be started here.
    """
    import ray

    if ray.is_initialized():
        yield ""
        return
    with ExitStack() as stack:
        context = joined(address) if address else started(stack, store_bytes)
        stack.callback(ray.shutdown)
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""


def token_hint() -> str:
    """How to get past the question of Ray's dashboard for a token."""
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token":
        return "it asks for no token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "it asks for a token: $RAY_AUTH_TOKEN"
    return "it asks for a token, which `ray get-auth-token` prints"


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
"""What goes wrong is raised, and said in one line."""


def joined(address: Address) -> Any:
    """Connect to a running cluster.

    Raises:
        InputError: no cluster, or it refuses the connection; names the origin of the address.
    """
    import ray

    check(address)
    try:
        return ray.init(address=address.text, **outside_code(), **QUIET)
    except Exception as error:  # Ray has no one class for what can go wrong here
        raise address.refused(
            f"Ray cannot be reached: {reason(error)}; where tokens are on it wants the cluster's:"
            " RAY_AUTH_MODE=token and ~/.ray/auth_token"
        ) from error


def outside_code() -> dict[str, Any]:
    """Arguments of `ray.init` that bring imported modules with methods to every node of a cluster.

    Processes of this machine inherit the variables instead. Packages that are found by their entry
    points are not sent: they are installed on the nodes, as this project is.
    """
    names = [name for name in os.environ.get(outside_methods.MODULES, "").split(",") if name]
    if not names:
        return {}
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    known = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {outside_methods.MODULES: ",".join(names)}
    sources = dict.fromkeys(
        str(source) for name in names for source in outside_methods.sources_of(name)
    )
    found: dict[str, Any] = {"py_modules": list(sources)}
    if outside_methods.MODULES not in known:  # Ray refuses a variable that the job has, too
        found["env_vars"] = variables
    return {"runtime_env": found}


def started(stack: ExitStack, store_bytes: int) -> Any:
    """Start a local cluster on loopback; `stack` removes its folder.

    Ray gives its processes half a minute, which a machine with much else to do may exceed: a start
    that failed is tried once more.

    Raises:
        InputError: it does not start; nothing of it is left running.
    """
    if short := shortfalls(store_bytes):
        raise InputError(f"this machine: Ray cannot start here: {'; '.join(short)}")
    folder = stack.enter_context(session_folder())
    make_token()
    try:
        try:
            context = start(store_bytes)
        except Exception as error:
            log.debug("a second try, since Ray did not start: %s", error)
            context = start(store_bytes)
    except Exception as error:  # Ray has no one class for what can go wrong here
        raise InputError(
            f"this machine: Ray does not start: {reason(error)}; end what else keeps the machine"
            " busy, or start Ray yourself (`ray start --head`) and give --address auto"
        ) from error
    close_to_others(folder)
    return context


def start(store_bytes: int) -> Any:
    """Try once to start Ray; if it fails, its processes are killed."""
    import ray

    before = set(children())
    try:
        # "local": without it Ray would join whatever cluster was last started on this machine.
        with signals.apart():
            return ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=store_bytes,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                **QUIET,
            )
    except BaseException:
        ray.shutdown()
        end(set(children()) - before)
        raise


ROUTINE = re.compile(r"^\s*$|\b(?:INFO|DEBUG)\b")
"""Lines of Ray's logs that report no fault."""


def reason(error: BaseException) -> str:
    """Ray's error message in one short line.

    Where Ray's message is the end of a log, the last line of it that reports a fault.

    >>> reason(RuntimeError("The last 20 lines of dashboard.log (it has the error):\\na\\tINFO b"))
    'its dashboard was not there in time'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("The last 20 lines of"):  # it did not start in time
        faults = [line.strip() for line in lines[1:] if not ROUTINE.search(line)]
        return faults[-1][:200] if faults else "its dashboard was not there in time"
    return lines[0].split(". ")[0][:200]


def children() -> list[psutil.Process]:
    """Processes that this process started, and theirs."""
    return psutil.Process().children(recursive=True)


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes and wait until they have ended."""
    gone = list(processes)
    for process in gone:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(gone, timeout=10)
