"""Debian's PostgreSQL and an MLflow server with passwords, on loopback, for as long as a test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Where Debian keeps the programs of PostgreSQL; empty where it is not installed."""

USER, PASSWORD = "admin", "a-first-password"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Postgres:
    """A cluster of databases in a folder of its own, of a user that may run it: not root."""

    def __init__(self) -> None:
        self.data, self.port = Path(tempfile.mkdtemp(prefix="sweeps-postgres-")), free_port()
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self.user:
            os.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        self.run("initdb", "-D", self.data, "-U", "mlflow", "--auth=trust", "--no-sync")
        self.start()
        for name in ("mlflow", "auth"):
            self.create(name)

    def run(self, program: str, *words: object) -> None:
        prefix = ["runuser", "-u", "postgres", "--"] if self.user else []
        command = [*prefix, str(POSTGRES[-1] / program), *map(str, words)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=120, cwd="/"
        )
        assert done.returncode == 0, done.stderr.decode()

    def create(self, name: str) -> None:
        self.run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "mlflow", name)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        log = self.data / "log"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", options, "start")

    def kill(self) -> None:
        """As when the power goes: what was not written is recovered from the log at the start."""
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.data)

    def uri(self, name: str) -> str:
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/{name}"


class Server:
    """`mlflow server` with one worker."""

    def __init__(self, folder: Path, postgres: Postgres, name: str = "mlflow") -> None:
        self.folder, self.port, self.store = folder, free_port(), postgres.uri(name)
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "auth.ini"
        self.config.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = {postgres.uri('auth')}\nauth_cache_ttl_seconds = 60\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        env = os.environ | {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [
            sys.executable, "-m", "mlflow", "server", "--workers", "1", "--app-name", "basic-auth",
            "--backend-store-uri", self.store,
            "--artifacts-destination", str(self.folder / "artifacts"),
            "--host", "127.0.0.1", "--port", str(self.port),
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.wait()

    def wait(self, seconds: float = 180) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """kill -9 of the server and of its workers, which are its session."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
