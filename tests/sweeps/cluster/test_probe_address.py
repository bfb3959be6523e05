"""Addresses at which no Ray answers are one line, in seconds; what listens there is made up."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from fusion.errors import InputError
from sweeps.cli import ray_job
from sweeps.cluster import probe_address, ray_connection
from sweeps.cluster.probe_address import Address, check, check_jobs, given, parsed
from tests.refusals import one_line


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(probe_address, "PATIENCE", 1.0)
    monkeypatch.setattr(probe_address, "ANSWER", 1.0)


def dead_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield int(listener.getsockname()[1])


@contextmanager
def web(status: int = 404) -> Iterator[int]:
    """A web server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def grpc_server(call: str, code: grpc.StatusCode | None = None) -> Iterator[int]:
    """A gRPC server with one call, which may end in an error."""
    from concurrent.futures import ThreadPoolExecutor

    def answer(request, context):
        if code is not None:
            context.abort(code, "no")
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            known = details.method == call
            return grpc.unary_unary_rpc_method_handler(answer) if known else None

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


def refusal(address: Address) -> str:
    start = time.monotonic()
    with one_line(start=f"{address.origin}: ") as lines:
        check(address)
    assert time.monotonic() - start < 10
    return lines[0]


@pytest.mark.parametrize("origin", ["--address", "$RAY_ADDRESS"])
@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_a_port_without_a_ray_is_refused_in_time(origin, prefix):
    dead = dead_port()
    text = refusal(Address(f"{prefix}127.0.0.1:{dead}", origin))
    assert f"127.0.0.1 port {dead} (Connection refused)" in text
    assert ("unset RAY_ADDRESS" in text) == (origin == "$RAY_ADDRESS")
    for listening in (silent, web):
        with listening() as port:
            text = refusal(Address(f"{prefix}127.0.0.1:{port}", origin))
            assert "is open, but what listens there is no Ray" in text


def test_another_server_of_grpc_is_no_head():
    with grpc_server("/other/Call") as port:
        assert "not the head's port" in refusal(Address(f"127.0.0.1:{port}", "--address"))
    with grpc_server(
        probe_address.ALIVE["ray"]
    ) as port:  # a client server's port, given for the head's
        assert "not the head's port" in refusal(Address(f"127.0.0.1:{port}", "--address"))
        check(Address(f"ray://127.0.0.1:{port}", "--address"))


def test_a_head_is_let_through_and_may_want_a_token():
    for code in (None, grpc.StatusCode.UNAUTHENTICATED):
        with grpc_server(probe_address.ALIVE[""], code) as port:
            check(Address(f"127.0.0.1:{port}", "--address"))


def test_a_name_that_is_none_is_said():
    assert "cannot be resolved" in refusal(Address("nowhere.invalid:6379", "--address"))


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(30))
    assert "no answer from head port 6379 in 1 s" in refusal(Address("head:6379", "--address"))


@pytest.mark.parametrize(
    "text",
    ["head", "head:", ":6379", "head:ray", "head:0", "head:99999", "::1:6379", "a b:1", "a\nb:1",
     "redis://head:6379", "ray://", "ray://head", "head:6379/x", "head:6379?x", "me:pw@head:6379"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_being_tried(text, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    said = refusal(Address(text, "--address"))
    assert said.endswith("ray://host:port, auto or local allowed")
    assert "pw" not in said


def test_the_address_of_a_job_server_is_told_apart():
    text = refusal(Address("http://127.0.0.1:8265", "$RAY_ADDRESS"))
    assert "`ray job submit`" in text


@drawn(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    with suppress(InputError):
        kind, host, port = parsed(Address(text, "--address"))
        assert kind in probe_address.ALIVE
        assert host
        assert 0 < port < 65536


def test_where_an_address_comes_from(monkeypatch):
    assert given(None) is None
    assert given("local") is None
    assert given(" h:1 ") == Address("h:1", "--address")
    monkeypatch.setenv("RAY_ADDRESS", "e:2")
    assert given(None) == given("auto") == given("") == Address("e:2", "$RAY_ADDRESS")
    assert given("h:1") == Address("h:1", "--address")
    assert given("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert given(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert given("auto") == Address("auto", "--address")


def test_auto_without_a_ray_on_this_machine_is_said(monkeypatch):
    monkeypatch.setattr(probe_address, "here", list)
    assert "no Ray runs on this machine" in refusal(Address("auto", "--address"))
    monkeypatch.setattr(
        probe_address, "here", lambda: [("127.0.0.1", dead_port())]
    )  # its head died
    assert "no Ray runs on this machine" in refusal(Address("auto", "$RAY_ADDRESS"))


def test_a_dead_address_is_refused_before_ray_is_asked(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{dead_port()}")
    with (
        pytest.raises(InputError, match=r"^\$RAY_ADDRESS: "),
        ray_connection.connected(ray_connection.target(None), 0),
    ):
        pass


def jobs_refusal(url: str) -> str:
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        check_jobs(url, "$RAY_API_SERVER_ADDRESS")
    assert time.monotonic() - start < 10
    text = str(error.value)
    assert text.startswith("$RAY_API_SERVER_ADDRESS: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "url", ["", "head:8265", "ftp://head", "http://", "http://a:b:c", "http://a b"]
)
def test_what_is_no_job_server_is_refused(url):
    assert "http://host:port" in jobs_refusal(url)


def test_a_job_server_that_is_none_is_refused_in_time():
    assert "refused" in jobs_refusal(f"http://127.0.0.1:{dead_port()}")
    with silent() as port:
        assert "no answer in 1 s" in jobs_refusal(f"http://127.0.0.1:{port}")
    with web(404) as port:
        assert "it answers 404" in jobs_refusal(f"http://127.0.0.1:{port}")
    with grpc_server("/x") as port:
        assert "no cluster takes the job" in jobs_refusal(f"http://127.0.0.1:{port}")
    for status in (200, 401, 403):
        with web(status) as port:
            check_jobs(f"http://127.0.0.1:{port}", "$RAY_API_SERVER_ADDRESS")


def test_who_submits_is_told_which_variable(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{dead_port()}")
    with pytest.raises(InputError, match=r"^\$RAY_API_SERVER_ADDRESS: "):
        ray_job.connected()
