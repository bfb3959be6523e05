"""Check within seconds whether a Ray cluster answers at an address; Ray itself waits for minutes.

Every refusal is one line that names the origin of the address.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from fusion.errors import InputError, one_line

PATIENCE = 10.0
"""Seconds for a port to be reached."""

ANSWER = 15.0
"""Seconds for what listens there to answer: a head under load takes its time."""

ALLOWED = "host:port of the head (6379, by Ray's default), ray://host:port, auto or local allowed"

ALIVE = {
    "": "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "ray": "/ray.rpc.RayletDriver/ClusterInfo",
}
"""Kind of address -> a call that its server knows, and no other does."""


@dataclass(frozen=True)
class Address:
    """Address of a cluster, and where it was configured."""

    text: str
    origin: str
    """`--address`, or `$RAY_ADDRESS`."""

    def refused(self, why: str) -> InputError:
        """The error for an address that cannot be used."""
        return InputError(f"{self.origin}: {shown(self.text)}: {why}")


def given(address: str | None) -> Address | None:
    """The configured address: `--address`, else `$RAY_ADDRESS`; None: start a local cluster.

    As to Ray, `auto` is `$RAY_ADDRESS` where that is set, and `local` one of our own.

    >>> given("10.0.0.1:6379")
    Address(text='10.0.0.1:6379', origin='--address')
    """
    text, origin = (address or "").strip(), "--address"
    variable = os.environ.get("RAY_ADDRESS", "").strip()
    if text in ("", "auto") and variable:
        text, origin = variable, "$RAY_ADDRESS"
    return None if text in ("", "local") else Address(text, origin)


def check(address: Address) -> None:
    """Raise InputError if no Ray answers there within `PATIENCE` and `ANSWER` seconds."""
    if address.text == "auto":
        if not any(answers(*place) for place in here()):
            raise address.refused(
                "no Ray runs on this machine; start one (`ray start --head`), or give the address"
                f" of its head: {ALLOWED}"
            )
        return
    kind, host, port = parsed(address)
    if fault := reached(host, port) or answered(kind, host, port):
        raise address.refused(f"{fault}; {remedy(address)}")


def answers(host: str, port: int) -> bool:
    """Whether a head node answers."""
    return not (reached(host, port) or answered("", host, port))


def remedy(address: Address) -> str:
    """Advice for the user."""
    if address.origin == "--address":
        return "start that cluster, or leave --address out to use this machine"
    return "start that cluster, or unset RAY_ADDRESS to use this machine"


def parsed(address: Address) -> tuple[str, str, int]:
    """Parse an address into kind (a key of `ALIVE`), host and port.

    Raises:
        InputError: it is no such address.

    >>> parsed(Address("ray://[::1]:10001", "--address"))
    ('ray', '::1', 10001)
    """
    kind, mark, rest = address.text.rpartition("://")
    if kind in ("http", "https"):
        raise address.refused(
            "the address of a job server, to which `ray job submit` sends a sweep; here it is"
            f" {ALLOWED}"
        )
    if mark and kind != "ray":
        raise address.refused(ALLOWED)
    host, port = place(rest)
    if host is None or port is None:
        raise address.refused(ALLOWED)
    return kind, host, port


def place(text: str) -> tuple[str | None, int | None]:
    """Host and port of `host:port`; None if it is invalid.

    >>> place("head:6379"), place("[::1]:6379"), place("head"), place("a:b:1"), place("h:99999")
    (('head', 6379), ('::1', 6379), ('head', None), (None, None), (None, None))
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None, None
    whole = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+)(:\d+)?", text)
    return (host, port) if whole and port != 0 else (None, None)


def reached(host: str, port: int) -> str | None:
    """Reason why no connection can be made; None: it was made."""

    def knock() -> None:
        socket.create_connection((host, port), timeout=PATIENCE).close()

    try:
        within(knock, PATIENCE)
    except TimeoutError:
        return f"no answer from {host} port {port} in {PATIENCE:g} s"
    except socket.gaierror as error:
        return f"the name {host!r} cannot be resolved ({error.strerror})"
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        return f"nothing can be reached at {host} port {port} ({reason})"
    return None


def within(call: Callable[[], object], seconds: float) -> None:
    """Run a call with a time limit, in a thread that is abandoned if it takes longer: looking a
    name up has no limit of its own.

    Raises:
        TimeoutError: it does not.
        Exception: any exception of the call.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="reach", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if raised:
        raise raised[0]


def answered(kind: str, host: str, port: int) -> str | None:
    """Reason why the server there is not a Ray; None: it is, or it asks for a token."""
    if os.environ.get("RAY_USE_TLS") in ("1", "true", "True"):
        return None  # Ray itself has the certificates
    import grpc  # start-up time: only an address that was given needs it

    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(ALIVE[kind])(b"", timeout=ANSWER)
        except grpc.RpcError as error:
            silent = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
            if error.code() in silent:
                return f"{host} port {port} is open, but what listens there is no Ray"
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                other = "the head's own port" if kind else "the head's port"
                return f"{host} port {port} is a server, but not {other}"
    return None


def here() -> list[tuple[str, int]]:
    """Addresses of heads of which a node runs on this machine."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        for word in process.info["cmdline"] or ():
            if word.startswith("--gcs-address="):
                found.add(word.partition("=")[2])
    places = [place(each) for each in sorted(found)]
    return [(host, port) for host, port in places if host and port]


def check_jobs(url: str, origin: str) -> None:
    """Raise InputError if no job server answers there in time.

    Args:
        url: `http://host:port`.
        origin: who says so.
    """
    address = Address(url, origin)
    parts = urlsplit(url) if "://" in url else None
    if parts is None or parts.scheme not in ("http", "https") or not place(parts.netloc)[0]:
        raise address.refused("http://host:port of the cluster's job server allowed")
    asked = urllib.request.Request(url.rstrip("/") + "/api/version")

    def ask() -> Any:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return answer.read(2**16)

    try:
        within(ask, PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # it wants a token, of which the client speaks
        raise address.refused(f"no job server of Ray: it answers {error.code}") from None
    except TimeoutError:
        raise address.refused(f"no cluster takes the job: no answer in {PATIENCE:g} s") from None
    except Exception as error:  # what a server that speaks no HTTP makes of urllib
        reason = one_line(getattr(error, "reason", None) or error)[:200]
        raise address.refused(f"no cluster takes the job: {reason}") from None


def shown(text: str) -> str:
    """An address as shown in messages: one line, shortened, without password.

    >>> shown("http://me:hush@head:8265")
    "'http://…@head:8265'"
    """
    return repr(re.sub(r"^(\w+://)?.*@", r"\1…@", text, flags=re.DOTALL)[:200])
