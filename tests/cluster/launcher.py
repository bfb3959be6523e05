"""The project's own `cluster.yaml` on hosts of this machine, and the user who works with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import hosts
from tests.cluster.hosts import Host

PROJECT = Path(__file__).parents[2]
MOUNTED = (
    "fusion",
    "actors",
    "sweeps",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
)
"""What there is of the project on the user's machine."""
STORE_BYTES = 300 * 2**20


@dataclass(frozen=True)
class Launcher:
    """A user's machine: a home with a token, the project, and a filled-in cluster file."""

    home: Path
    project: Path
    cluster: Path

    def environment(self) -> dict[str, str]:
        """What the user's shell hands on."""
        path = os.pathsep.join([str(Path(sys.executable).parent), hosts.search_path()])
        return {
            "HOME": str(self.home),
            "PATH": path,
            "RAY_TMPDIR": str(self.home),  # the launcher keeps its record of hosts there
            "TMPDIR": str(self.home),  # and its cache here
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
        }

    def ray(
        self, *words: str, timeout: float = 300, check: bool = True, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `ray WORDS` in the project's folder; `typed`: what it reads from its input."""
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            cwd=self.project,
            env=self.environment(),
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"ray {' '.join(words)}: status {done.returncode}\n{done.stdout}")
        return done


def user(home: Path, head: Host, workers: Sequence[Host]) -> Launcher:
    """A user whose cluster file names these hosts.

    Args:
        home: a new folder.
        head: the head.
        workers: all others.
    """
    project = home / "project"
    project.mkdir(parents=True)
    exclude = ["--exclude", "__pycache__"]
    hosts.system("rsync", "-a", *exclude, *(str(PROJECT / name) for name in MOUNTED), str(project))
    text = (PROJECT / "cluster.yaml").read_text()
    cluster = project / "cluster.yaml"
    cluster.write_text(filled_in(text, head.address, [host.address for host in workers]))
    launcher = Launcher(home, project, cluster)
    launcher.ray("get-auth-token", "--generate")
    return launcher


def filled_in(text: str, head: str, workers: Sequence[str]) -> str:
    """The cluster file with addresses and sizes put in; every change must find its place."""
    changes = {
        r"HEAD_ADDRESS": head,
        r"\[WORKER_1_ADDRESS, WORKER_2_ADDRESS\]": f"[{', '.join(workers)}]",
        r"ssh_user: USER": "ssh_user: root",
        r"~/\.ssh/id_ed25519": str(hosts.key()),
        r"--object-store-memory=\d+": f"--num-cpus=2 --object-store-memory={STORE_BYTES}",
    }
    for pattern, put in changes.items():
        text, count = re.subn(pattern, put, text)
        assert count, f"cluster.yaml: nothing matches {pattern}"
    return text
