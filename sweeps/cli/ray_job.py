"""Run a sweep as a job of a running Ray cluster: submit it, follow its log, be its entrypoint."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.files.documents import checked, read_yaml
from fusion.errors import InputError, one_line
from sweeps.cli.ending import BUG, INTERRUPTED
from sweeps.cluster.cluster_yaml import ClusterFile
from sweeps.cluster.probe_address import check_jobs
from sweeps.console import redact
from sweeps.storage.outputs_dir import in_job

PATIENCE = 300
"""Seconds to wait for the cluster file's nodes."""

LOST = 60.0
"""Seconds for a job server that went away to come back, while a job is followed."""

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""The cluster file, as `ray up` leaves it on the head."""

CODE = ("fusion", "actors", "sweeps")

HANDED_ON = ("FUSION_SWEEPS_", "MLFLOW_")
"""Variables that a job gets from who submits it. Secrets are not among them: the dashboard shows
what a job was given. They belong in the head's own environment or ~/.mlflow/credentials."""

SECRET = ("PASSWORD", "TOKEN", "SECRET")

STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
"""`ray job stop` is then Ctrl-C to the sweep, which says how to go on."""


@dataclass(frozen=True)
class JobOptions:
    """The parsed command line of `launch.py`."""

    words: tuple[str, ...]
    """Those of `sweeps run`."""
    nodes: int | None
    """`--wait-nodes`."""
    wait: float
    """`--wait`, seconds."""


def launch(words: Sequence[str]) -> None:
    """Run `launch.py WORDS`; ends the process with the sweep's status.

    Raises:
        InputError: no such file, a fault in it, no cluster here, or its token is another.
    """
    asked = parse(words)
    if in_job():
        wait_for_nodes(asked.nodes or expected_nodes(), asked.wait)
        run_here(asked.words)
    else:
        sys.exit(submit(asked, Path.cwd()))


def parse(words: Sequence[str]) -> JobOptions:
    """Split the command line into the two options of `launch.py`, and those of `sweeps run`.

    >>> parse(["a.yaml", "--resume", "--wait-nodes", "3"])
    JobOptions(words=('a.yaml', '--resume'), nodes=3, wait=300)
    """
    parser = argparse.ArgumentParser("launch.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--wait-nodes", type=int, dest="nodes")
    parser.add_argument("--wait", type=float, default=PATIENCE)
    own, rest = parser.parse_known_args(list(words))
    return JobOptions(tuple(rest), own.nodes, own.wait)


def run_here(words: Sequence[str]) -> None:
    """Run `sweeps run WORDS` in this process."""
    from sweeps.cli.main import app

    sys.argv = ["sweeps", "run", *words]  # the sweep's report says how it was made
    app()


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of `sweeps run`, as that command parses them; invalid ones end the process here."""
    import typer

    from sweeps.cli.main import app

    group: Any = typer.main.get_command(app)
    try:
        context = group.commands["run"].make_context("launch.py", list(words))
    except Exception as end:  # a usage error, or --help: typer keeps their classes to itself
        if not hasattr(end, "exit_code"):
            raise
        if hasattr(end, "show"):
            end.show()
        sys.exit(end.exit_code)
    return dict(context.params)


def submit(asked: JobOptions, caller: Path) -> int:
    """Submit a sweep to this host's cluster as a job, and follow it.

    Returns:
        The sweep's exit status.
    """
    from sweeps.spec.sweep import load

    options = options_of(asked.words)
    given = str(options["spec"])
    spec = found_spec(given, [caller, project()])
    modules = options["modules"] or []
    name = load(
        spec, options["overrides"] or [], modules
    ).name  # its faults end here, one line each
    words = [str(spec) if word == given else word for word in asked.words]
    if redact.command(words) != shlex.join(words):
        raise InputError(
            f"{redact.command(words)}: has a password or a token in it, which the dashboard would"
            " show; set it in the environment of the head (FUSION_SWEEPS_STORAGE,"
            " MLFLOW_TRACKING_URI, …)"
        )
    if asked.nodes is not None:
        words += ["--wait-nodes", str(asked.nodes)]
    words += ["--wait", f"{asked.wait:g}"]
    client = connected()
    job = client.submit_job(
        entrypoint=entrypoint(words),
        submission_id=f"sweep-{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        runtime_env=environment(os.environ),
        metadata={"sweep": name, "spec": str(spec), "host": socket.gethostname()},
    )
    say(f"job {job} runs the sweep {name}. It goes on if this terminal goes away.")
    say(f"  follow it again:  ray job logs --follow {job}")
    say(f"  stop it:          ray job stop {job}")
    return followed(client, job)


def found_spec(given: str, folders: Sequence[Path]) -> Path:
    """Absolute path of the sweep file: relative to the first of the folders that has it.

    Raises:
        InputError: it is nowhere.
    """
    places = [(folder / Path(given).expanduser()).absolute() for folder in folders]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise InputError(
        f"{given}: no such file on {socket.gethostname()} (looked at {looked}); send it there:"
        f" ray rsync-up cluster.yaml {given} '~/{Path(given).name}', then give {Path(given).name}"
    )


def project() -> Path:
    """Root folder of the project's packages, if it is installed with `-e`."""
    return Path(__file__).resolve().parents[2]


def entrypoint(words: Sequence[str]) -> str:
    """Shell command of the job, run in the project's folder, where relative paths of a sweep file
    start."""
    command = shlex.join([sys.executable, "-m", "sweeps.launch", *words])
    return f"cd {shlex.quote(str(project()))} && exec {command}"


def environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Runtime environment of the job: this host's code on every node."""
    handed_on = {
        name: value
        for name, value in variables.items()
        if name.startswith(HANDED_ON)
        and not any(word in name for word in SECRET)
        and not redact.has_secret(value)
    }
    folder = project()
    # By name: Ray takes the folder itself for excluded where all but some names are.
    others = sorted(f"/{entry.name}" for entry in folder.iterdir() if entry.name not in CODE)
    return {
        "working_dir": str(folder),
        "excludes": ["__pycache__", *others],
        "env_vars": {**handed_on, **STOPPING},
    }


def connected() -> Any:
    """A client of this host's job server.

    Raises:
        InputError: none answers, or it refuses the token.
    """
    from ray.job_submission import JobSubmissionClient  # start-up time

    variable = os.environ.get("RAY_API_SERVER_ADDRESS")
    url = variable or "http://127.0.0.1:8265"
    check_jobs(url, "$RAY_API_SERVER_ADDRESS" if variable else "the job server of this host")
    try:
        return JobSubmissionClient(url)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{socket.gethostname()}: no cluster takes the job: {reason}") from error


def followed(client: Any, job: str) -> int:
    """Print a job's log until it ends; returns its exit status."""
    try:
        asyncio.run(print_log(client, job))
        while not (info := info_of(client, job)).status.is_terminal():
            time.sleep(1)  # the log ended before the job did: its server was lost for a while
    except KeyboardInterrupt:
        say(f"no longer followed; the job goes on. Stop it with: ray job stop {job}")
        return INTERRUPTED
    if info.driver_exit_code is not None:
        code = int(info.driver_exit_code)
        return code if code >= 0 else 128 - code  # ended by a signal
    if info.status.value == "SUCCEEDED":
        return 0
    say(f"job {job}: {info.status.value.lower()}: {info.message}")
    return INTERRUPTED if info.status.value == "STOPPED" else BUG


def info_of(client: Any, job: str) -> Any:
    """State of a job on the server; if it is missing, ask again for `LOST` seconds.

    Raises:
        InputError: it does not come back.
    """
    until = time.monotonic() + LOST
    while True:  # at most LOST seconds
        try:
            return client.get_job_info(job)
        except Exception as error:  # the client has no class of its own for a server that is gone
            if time.monotonic() > until:
                raise InputError(
                    f"job {job}: its server has not answered for {LOST:g} s"
                    f" ({one_line(error)[:200]}); ask again: ray job status {job}"
                ) from error
            time.sleep(1)


async def print_log(client: Any, job: str) -> None:
    """Print what a job writes, as it writes it."""
    try:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()
    except (RuntimeError, OSError) as error:
        say(f"the log is lost ({error}); waiting for the end of the job")


def expected_nodes(file: Path = BOOTSTRAP) -> int:
    """Minimum number of nodes in the cluster file, with the head; 0 if there is no file."""
    place = file.expanduser()
    if not place.exists():
        return 0
    config = checked(ClusterFile, read_yaml(place), str(place))
    kinds = (config.available_node_types or {}).values()
    return 1 + sum(kind.min_workers or 0 for kind in kinds)


def wait_for_nodes(count: int, seconds: float) -> None:
    """Wait until the job's cluster has this many nodes.

    Raises:
        InputError: it has not, after so many seconds.
    """
    if count <= 1:
        return
    until = time.monotonic() + seconds
    while len(there := alive_nodes()) < count:
        if time.monotonic() > until:
            raise InputError(
                f"--wait-nodes: {count} nodes wanted, {len(there)} there after {seconds:g} s"
                f" ({', '.join(there)}); `ray monitor cluster.yaml` tells why,"
                f" --wait-nodes {len(there)} goes on with these"
            )
        time.sleep(1)


def alive_nodes() -> list[str]:
    """Addresses of the nodes of this job's cluster."""
    from ray.util.state import list_nodes  # start-up time

    nodes = list_nodes(address="auto", filters=[("state", "=", "ALIVE")], limit=10_000)
    return sorted(node.node_ip for node in nodes)


def say(line: str) -> None:
    """Print and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
