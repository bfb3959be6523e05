"""Hosts on one machine: each a network, mount and process namespace of its own with sshd in it.

A host has its own address, home, `/tmp`, `/dev/shm` and processes. All else of the machine is there
to read and not to write: hosts share Python and its packages, and no folder through which
one could hand another a file. What is made here goes when the context ends; what a killed run
left is found by its names and removed when the next one starts. Needs root, ip and sshd.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/var/tmp/fusion-sweeps-hosts")
BRIDGE = "fusionbr0"
PREFIX = "fusion-"
LINK = "fusionv"
SUBNET = "10.231.77"
OUR_ADDRESS = f"{SUBNET}.1"
SHARED_MEMORY = "700m"
TOOLS = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "rsync", "ss")

# Inside a host: its own places are mounted over the machine's, then the rest is made read-only.
INSIDE = """
set -e
hostname {name}
mount --bind {own}/home {root}/home
mount -t overlay overlay -o lowerdir=/etc,upperdir={own}/etc,workdir={own}/work-etc /etc
mount -t overlay overlay -o lowerdir=/tmp,upperdir={own}/tmp,workdir={own}/work-tmp /tmp
mount --bind {own}/ray /tmp/ray
mount -t tmpfs -o size={memory} tmpfs /dev/shm
mount --bind {own} {own}
mount -o remount,bind,ro /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$(command -v sshd)" -D -f {own}/sshd_config
"""

SSHD = """
ListenAddress {address}
HostKey {root}/hostkey
AuthorizedKeysFile {root}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
AllowTcpForwarding yes
PrintMotd no
PidFile none
MaxStartups 100
"""

# Hosts have no network but each other: pip finds all it is asked for already there.
# "no-build-isolation = false" is how pip is told not to isolate: it reads "build-isolation".
PIP = "[install]\nno-index = true\nno-build-isolation = false\n"


@dataclass(frozen=True)
class Host:
    """One host that runs."""

    name: str
    address: str
    process: int
    """Of the machine: what holds the host's namespaces; it ends with the host."""

    @property
    def home(self) -> Path:
        """Its home folder, as this machine sees it."""
        return ROOT / self.name / "home"

    def ssh(self, *options: str) -> list[str]:
        """The command that logs in."""
        quiet = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        words = [word for option in quiet for word in ("-o", option)]
        return ["ssh", "-i", str(key()), *words, *options, f"root@{self.address}"]

    def run(
        self, command: str, *, timeout: float = 240, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command there, as a login of a user would."""
        login = [*self.ssh(), f"bash --login -c {shlex.quote('. ~/.bashrc; ' + command)}"]
        done = subprocess.run(login, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return done


def key() -> Path:
    """The private key that opens every host."""
    return ROOT / "key"


def missing() -> str | None:
    """Why hosts cannot be made here; None: they can."""
    if os.geteuid() != 0:
        return "needs root (network namespaces)"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=search_path()) is None]
    return f"needs {', '.join(absent)}: run `make test-cluster`" if absent else None


def search_path() -> str:
    """Where tools are, those of the system included."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts of these names, reachable by ssh from here and from each other.

    Raises:
        AssertionError: another run has its hosts up, or one does not come up.
    """
    with ExitStack() as stack:
        stack.enter_context(alone())
        remove()
        stack.callback(remove)
        (ROOT / "home").mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in ("key", "hostkey"):
            system("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ROOT / name))
        system("ip", "link", "add", BRIDGE, "type", "bridge")
        system("ip", "address", "add", f"{OUR_ADDRESS}/24", "dev", BRIDGE)
        system("ip", "link", "set", BRIDGE, "up")
        started = [start(name, index) for index, name in enumerate(names)]
        for host in started:
            wait_for_ssh(host)
        yield started


@contextmanager
def alone() -> Iterator[None]:
    """Hold the names and addresses of hosts; the lock goes with the process, however it ends."""
    with open(f"{ROOT}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AssertionError(f"{ROOT}.lock: another run has its hosts up") from None
        yield


def start(name: str, index: int) -> Host:
    """One host: its link to the bridge, its folders, its processes."""
    space, inner, outer = PREFIX + name, "eth0", f"{LINK}{index}"
    address = f"{SUBNET}.{index + 2}"
    system("ip", "netns", "add", space)
    system("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
    system("ip", "link", "set", outer, "master", BRIDGE, "up")
    inside = ["ip", "-n", space]
    system(*inside, "link", "set", "lo", "up")
    system(*inside, "address", "add", f"{address}/24", "dev", inner)
    system(*inside, "link", "set", inner, "up")
    system(*inside, "route", "add", "default", "via", OUR_ADDRESS)  # Ray finds its address by it
    own = ROOT / name
    for folder in ("home", "ray", "tmp", "work-tmp", "etc", "work-etc"):
        (own / folder).mkdir(parents=True)
    (own / "tmp").chmod(0o1777)
    (own / "etc" / "passwd").write_text(passwd_with_home(ROOT / "home"))
    (own / "sshd_config").write_text(SSHD.format(address=address, root=ROOT))
    furnish(own / "home", ROOT / "home")
    script = INSIDE.format(name=name, own=own, root=ROOT, memory=SHARED_MEMORY)
    unshared = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child"]
    log = (own / "log").open("w")
    with log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", space, *unshared, "--mount-proc", "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": search_path()},
            start_new_session=True,
        )
    return Host(name, address, process.pid)


def furnish(home: Path, seen_as: Path) -> None:
    """A home in which the project's own setup commands work without a network.

    Its virtual environment is there, empty but for a path to the packages of the one that runs
    the tests: `pip install -c constraints.txt -e .` then adds the host's own copy of the project.
    """
    environment = home / ".fusion-sweeps"
    system(sys.executable, "-m", "venv", "--without-pip", str(environment))
    packages = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, call in {"ray": "ray.scripts.scripts:main", "pip": "pip:main"}.items():
        module, function = call.split(":")
        program = environment / "bin" / name
        python = seen_as / environment.relative_to(home) / "bin" / "python"
        program.write_text(
            f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        program.chmod(0o755)
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(PIP)


def passwd_with_home(home: Path) -> str:
    """The machine's users, root with another home."""
    lines = Path("/etc/passwd").read_text().splitlines()
    fields = next(line for line in lines if line.startswith("root:")).split(":")
    fields[5:7] = [str(home), "/bin/bash"]
    return "\n".join([":".join(fields), *(x for x in lines if not x.startswith("root:"))]) + "\n"


def wait_for_ssh(host: Host, seconds: float = 20) -> None:
    """Until the host answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection((host.address, 22), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"{host.name}: no sshd: {(ROOT / host.name / 'log').read_text()}")


def stop(host: Host) -> None:
    """Take a host away as a power cut would: all its processes at once."""
    with suppress(ProcessLookupError):
        os.kill(host.process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(host.process, 0)


def remove() -> None:
    """Everything that `hosts` makes, whoever made it; nothing where there is nothing."""
    listed = subprocess.run(
        ["ip", "netns", "list"], capture_output=True, text=True, env={"PATH": search_path()}
    )
    for line in listed.stdout.splitlines():
        space = line.split()[0]
        if not space.startswith(PREFIX):
            continue
        pids = subprocess.run(
            ["ip", "netns", "pids", space],
            capture_output=True,
            text=True,
            env={"PATH": search_path()},
        )
        for pid in map(int, pids.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        system("ip", "netns", "delete", space)
    for link in Path("/sys/class/net").iterdir():
        if link.name == BRIDGE or link.name.startswith(LINK):
            with suppress(AssertionError):  # a link goes with its host, a moment later
                system("ip", "link", "delete", link.name)
    for attempt in range(50):
        try:
            if ROOT.exists():
                shutil.rmtree(ROOT)
            return
        except OSError:  # a process of a host is still on its way out
            if attempt == 49:
                raise
            time.sleep(0.1)


def system(*command: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"PATH": search_path()}
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


if __name__ == "__main__":  # what a run that was killed has left
    with alone():
        remove()
