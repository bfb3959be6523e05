"""From nothing to a finished sweep: `ray up`, `ray submit`, `ray job submit`, and the result."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import SPEC, OneMachine, Site, listeners
from tests.cluster.hosts import Host

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
LAUNCH = "sweeps/launch.py"
SAME = ("method", "kind", "params", "trials", "val", "test", "test_ci95", "trial_key", "notes")


@pytest.fixture(scope="module")
def submitted(site: Site) -> str:
    """What `ray submit` of the sweep printed."""
    return site.user.ray("submit", "cluster.yaml", LAUNCH, "--", SPEC.name, timeout=1200).stdout


def test_ray_submit_gives_the_one_machine_result_bit_for_bit(
    site: Site, one_machine: OneMachine, submitted: str, tmp_path: Path
) -> None:
    assert "job sweep-several-hosts-" in submitted
    site.user.ray(
        "rsync-down", "cluster.yaml", "~/fusion-sweeps/outputs/several-hosts/", f"{tmp_path}/"
    )
    assert essence(comparison(tmp_path)) == essence(comparison(one_machine.folder))
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_workers_were_brought_what_they_lacked(site: Site, submitted: str) -> None:
    for worker in site.workers:
        cache = worker.home / ".cache" / "fusion-sweeps"
        assert not (cache / "embedded").exists(), "the pool was to be on the head alone"
        assert list(cache.glob("pixels/*.arrow")), f"{worker.name} evaluated nothing"


def test_ray_job_submit_gives_the_same(site: Site, one_machine: OneMachine, submitted: str) -> None:
    project = site.user.project
    (project / SPEC.name).write_text(SPEC.read_text())
    with dashboard(site) as address:
        command = ["python", "-m", "sweeps", "run", SPEC.name, "--set", "name=by-job"]
        words = ["job", "submit", "--address", address, "--working-dir", ".", "--", *command]
        said = site.user.ray(*words, timeout=1200).stdout
    assert "succeeded" in said
    found = comparison(site.head.home / "fusion-sweeps" / "outputs" / "by-job")
    assert essence(found) == essence(comparison(one_machine.folder))


def test_a_lost_terminal_loses_nothing(site: Site, submitted: str) -> None:
    words = ["submit", "cluster.yaml", LAUNCH, "--", SPEC.name, "--set", "name=lost"]
    terminal = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        cwd=site.user.project,
        env=site.user.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert terminal.stdout is not None
    job = next(
        found[1] for line in terminal.stdout if (found := re.match(r"job (\S+) runs the", line))
    )
    os.killpg(terminal.pid, signal.SIGKILL)  # ray, and its ssh: the head sees a hang-up
    terminal.wait()
    until = time.monotonic() + 60
    while site.head.run("pgrep -f '[~/]launch.py'", check=False).stdout:
        assert time.monotonic() < until, "whoever followed the job is still there"
        time.sleep(1)
    assert wait_for_job(site.head, job) == "SUCCEEDED"
    rows = comparison(site.head.home / "fusion-sweeps" / "outputs" / "lost")["rows"]
    assert {"task_arithmetic", "ties", "dawe"} <= {row["method"] for row in rows}


def test_what_else_the_docs_do_with_the_launcher(site: Site, submitted: str) -> None:
    assert "Active:" in site.user.ray("exec", "cluster.yaml", "ray status").stdout
    said = site.user.ray("exec", "cluster.yaml", "sweeps report several-hosts").stdout
    assert "task_arithmetic" in said
    typed = "echo $((40 + 2)) is here\nexit\n"
    assert "42 is here" in site.user.ray("attach", "cluster.yaml", typed=typed).stdout
    (site.user.project / "mine.yaml").write_text(SPEC.read_text())
    site.user.ray("rsync-up", "cluster.yaml", "mine.yaml", "~/mine.yaml")
    assert (site.head.home / "mine.yaml").read_text() == SPEC.read_text()


def test_wrong_input_ends_in_one_line_and_starts_nothing(site: Site) -> None:
    before = site.head.run("ray job list").stdout.count("submission_id")
    lines = {
        "nothing.yaml": "nothing.yaml: no such file on head",
        f"{SPEC.name} --set methods.ties.densty=1": "densty",
    }
    for words, said in lines.items():
        done = site.head.run(f"cd && python ~/fusion-sweeps/{LAUNCH} {words}", check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert site.head.run("ray job list").stdout.count("submission_id") == before


def test_nodes_that_do_not_come_are_told(site: Site) -> None:
    words = f"{SPEC.name} --set name=waits --wait-nodes 4 --wait 2"
    done = site.head.run(f"cd && python ~/fusion-sweeps/{LAUNCH} {words}", check=False)
    assert done.returncode == 2
    assert "4 nodes wanted, 3 there after 2 s" in done.stdout
    assert not (site.head.home / "fusion-sweeps" / "outputs" / "waits").exists()


def test_ray_job_stop_interrupts_the_sweep(site: Site, submitted: str) -> None:
    words = f"{SPEC.name} --set name=stopped"
    # Waits for a fourth node, so that it is there to be stopped.
    waiting = f"cd && python ~/fusion-sweeps/{LAUNCH} {words} --wait-nodes 4 --wait 600"
    running = subprocess.Popen(
        [*site.head.ssh(), f". ~/.bashrc; {waiting}"], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    seen = ""
    for line in running.stdout:
        seen += line
        if found := re.match(r"job (\S+) runs the", line):
            job = found[1]
        if line.startswith("Running entrypoint"):
            break
    site.head.run(f"ray job stop {job}")
    assert running.wait(timeout=240) == 130, seen + running.stdout.read()


@pytest.mark.parametrize("token", ["wrong", "none", "no authentication"])
def test_who_lacks_the_token_is_refused(site: Site, token: str) -> None:
    head = f"{site.head.address}:6379"
    lacking = {
        "wrong": "export RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef",
        "none": "export RAY_AUTH_TOKEN_PATH=/nowhere",
        "no authentication": "export RAY_AUTH_MODE=disabled",
    }[token]
    status = site.head.run(f"{lacking}; ray status --address {head}", check=False)
    assert status.returncode != 0
    assert "oken" in status.stderr
    stranger = f"cd && sweeps run {SPEC.name} --address {head} --set name=stranger"
    refused = site.head.run(f"{lacking}; {stranger}", check=False)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "Ray cannot be reached" in refused.stderr.splitlines()[-1]
    assert "~/.ray/auth_token" in refused.stderr.splitlines()[-1]


def test_the_job_server_refuses_who_lacks_the_token(site: Site) -> None:
    given = (site.user.home / ".ray" / "auth_token").read_text().strip()
    ask = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "r = u.Request('http://127.0.0.1:8265/api/jobs/')\n"
        "if sys.argv[1:]: r.add_header('Authorization', 'Bearer ' + sys.argv[1])\n"
        "try: print(u.urlopen(r).status)\n"
        "except e.HTTPError as error: print(error.code)"
    )
    for token, status in {given: "200", "": "401", "wrong": "403"}.items():
        assert site.head.run(f"python -c {shlex.quote(ask)} {token}").stdout.strip() == status


def test_the_token_is_readable_by_its_owner_only(site: Site) -> None:
    for host in (site.head, *site.workers):
        assert (host.home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_the_dashboard_answers_on_the_head_itself_only(site: Site) -> None:
    served = {place for place in listeners(site.head) if place.endswith(":8265")}
    assert served == {"127.0.0.1:8265"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((site.head.address, 8265), timeout=5)


def test_one_machine_listens_on_loopback_only(one_machine: OneMachine) -> None:
    of_ray = one_machine.heard - {f"{one_machine.address}:22"}
    assert of_ray, "nothing was seen to listen"
    loopback = r"(127\.|\[::1\]|\[::ffff:127\.)"
    assert not {place for place in of_ray if not re.match(loopback, place)}


def test_another_version_on_a_node_is_refused_unless_the_code_is_sent(
    site: Site, submitted: str
) -> None:
    worker = site.workers[0]
    file = worker.home / "fusion-sweeps" / "actors" / "shards" / "shard.py"
    whole = file.read_text()
    file.write_text(whole + "\n# another version\n")
    try:
        run = f"cd ~/fusion-sweeps && sweeps run ~/{SPEC.name} --address auto --set name=versions"
        done = site.head.run(run, check=False, timeout=600)
        assert done.returncode == 2, done.stdout + done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert worker.address in line
        assert "code" in line
        sent = f"cd && python ~/fusion-sweeps/{LAUNCH} {SPEC.name} --set name=sent"
        assert site.head.run(sent, timeout=1200).returncode == 0
    finally:
        file.write_text(whole)


def comparison(folder: Path) -> Any:
    """A sweep's `comparison.json`."""
    return json.loads((folder / "comparison.json").read_text())


def essence(content: Any) -> Any:
    """What must not depend on where a sweep ran: all but its name, times, paths and run ids."""
    rows = [{name: row[name] for name in SAME if name in row} for row in content["rows"]]
    return {"rows": rows, "pairs": content["pairs"], "tasks": content["tasks"]}


def wait_for_job(head: Host, job: str, seconds: float = 1200) -> str:
    """How a job ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        said = head.run(f"ray job status {job}", check=False).stdout + " "
        for end in ("SUCCEEDED", "FAILED", "STOPPED"):
            if end in said.upper():
                return end
        time.sleep(3)
    raise AssertionError(f"{job} did not end")


@contextmanager
def dashboard(site: Site) -> Iterator[str]:
    """`ray dashboard`: the head's job server on a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["dashboard", "cluster.yaml", "--port", str(port)]
    forwarding = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        cwd=site.user.project,
        env=site.user.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until, "ray dashboard forwards nothing"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(forwarding.pid, signal.SIGTERM)
        forwarding.wait()
