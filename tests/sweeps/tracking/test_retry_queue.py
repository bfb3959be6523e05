"""Jobs for a side that goes away: none lost, none waited for, one line said."""

import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException, RestException

from sweeps.tracking import retry_queue as module
from sweeps.tracking.mlflow_store import passes, reason
from sweeps.tracking.retry_queue import Sender


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST", 0.01)
    monkeypatch.setattr(module, "LONGEST", 0.02)


class Watch:
    """Time of the queue: it goes by when a test moves it on, and in pauses between tries.

    A pause begins once `begins` allows it.
    """

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.begins = lambda: True
        watch = self

        class Pause(threading.Event):
            def wait(self, timeout=None):
                while not watch.begins():
                    time.sleep(0.001)
                if not self.is_set():
                    watch.now += timeout
                return self.is_set()

        monkeypatch.setattr(module, "Event", Pause)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def away():
    raise ConnectionError("server gone")


def sender(patience=0.3, probe=away):
    return Sender(probe, patience)


def test_a_job_is_done_again_until_it_is_taken_and_those_behind_it_follow(caplog):
    tried, done = [], []

    def hard():
        tried.append(1)
        if len(tried) < 9:
            away()

    each = sender(60)
    assert each.offer(hard)
    assert each.offer(lambda: done.append(len(tried)))
    each.drain()
    assert (len(tried), done) == (9, [9])
    assert each.fault is None
    assert each.trouble is None
    assert each.shaky
    assert caplog.text.count("server gone") <= 2  # once, and once more by who waits
    assert caplog.text.count("MLflow: back") == 1


def test_offering_never_waits_and_what_finds_no_room_is_refused(monkeypatch):
    monkeypatch.setattr(module, "QUEUED", 3)
    gate = threading.Event()
    each = sender(60)
    taken = [each.offer(gate.wait) for _ in range(5)]  # none of them ends before `set`
    assert taken == [True, True, True, False, False]
    gate.set()
    each.drain()
    assert each.offer(lambda: None)


def test_the_end_waits_for_a_stated_time_and_then_gives_up_once(watch, caplog):
    each, done = sender(patience=0.3), []
    watch.begins = lambda: each.waited is not None
    each.offer(away)
    each.offer(away)
    while each.trouble is None:
        time.sleep(0.005)
    began = watch.now
    each.drain()
    assert 0.3 - 1e-9 <= watch.now - began <= 0.3 + module.LONGEST
    assert each.fault == "server gone"
    assert caplog.text.count("waiting up to 0.3 s for it") == 1
    assert caplog.text.count("results stay on disk, --resume sends them") == 1
    began = watch.now
    assert not each.do(lambda: done.append(1))  # it is over: nobody waits again
    assert (watch.now, done) == (began, [])


def test_a_pause_after_thousands_of_tries_is_the_longest(watch):
    each = sender()
    each.pause("server gone", 5000)
    assert watch.now == module.LONGEST


def test_time_that_goes_by_in_success_is_not_charged(watch):
    """Trouble of 5 s among jobs that take 180 s together, with a patience of 60 s."""
    each, done = sender(patience=60), []
    tried = []

    def takes(seconds):
        watch.now += seconds

    def hard():
        tried.append(1)
        if len(tried) < 5:
            takes(1)
            away()

    for _ in range(3):
        assert each.do(lambda: takes(60) or done.append(1))
    assert each.do(hard)
    assert (len(done), each.fault) == (3, None)
    assert 56 - 4 * module.LONGEST <= each.left <= 56


@pytest.mark.parametrize("kind", ["away", "refused", "slow refusal", "hangs up"])
def test_a_side_that_reads_and_takes_nothing_is_one_budget_for_all(kind, watch, caplog):
    """It answers every question, and no write: 200 trials wait as long as one."""
    faults = {
        "away": (0.0, ConnectionError("reset")),
        "refused": (0.0, MlflowException("database or disk is full")),
        "slow refusal": (0.05, RestException({"error_code": "PERMISSION_DENIED", "message": "no"})),
        "hangs up": (0.05, ConnectionError("Connection broken: IncompleteRead")),
    }
    seconds, fault = faults[kind]

    def write():
        watch.now += seconds
        raise fault

    each = sender(patience=0.5, probe=lambda: None)
    each.offer(write)
    each.drain()
    for _ in range(200):
        each.do(write)
    before_anybody_waits = module.TRIES * (seconds + module.LONGEST)
    assert watch.now < 0.5 + before_anybody_waits + seconds + module.LONGEST
    assert each.fault == str(fault).partition(": ")[2] or each.fault == str(fault)
    assert len(caplog.records) <= 3


def test_the_reason_is_said_when_it_comes_and_not_at_the_end():
    said = []
    each = Sender(lambda: None, 0.3, said.append)

    def full():
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    each.offer(full)
    until = time.monotonic() + 2
    while not said and time.monotonic() < until:
        time.sleep(0.005)
    assert said == ["MLflow: (sqlite3.OperationalError) database or disk is full; trying again"]
    each.close()


def test_after_a_signal_a_request_that_never_ends_is_left_alone(monkeypatch):
    each, gate = sender(patience=60), threading.Event()
    each.offer(lambda: gate.wait(20))
    monkeypatch.setattr(module.signals, "remaining", lambda: 0.1)
    began = time.monotonic()
    each.drain()
    assert not each.do(lambda: None)
    assert time.monotonic() - began < 2
    assert each.fault
    workers = [thread for thread in threading.enumerate() if thread.name == "mlflow"]
    assert all(thread.daemon for thread in workers)
    gate.set()


def test_what_can_never_be_taken_is_left_and_the_rest_goes_on():
    def refused():
        raise MlflowException.invalid_parameter_value("bad key")

    each, done = sender(60), []
    each.offer(refused)
    each.offer(lambda: done.append(1))
    each.drain()
    assert each.fault == "bad key"
    assert done == [1]


def test_a_job_that_alone_fails_does_not_hold_up_the_others():
    """The server answers 500 to one request, whatever is done, and others well."""
    each, done = sender(60, probe=lambda: None), []
    each.offer(away)
    each.offer(lambda: done.append(1))
    each.drain()
    assert each.fault == "server gone"
    assert done == [1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("refused"), True),
        (MlflowException("boom"), True),  # INTERNAL_ERROR, 500
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "db"}), True),
        (RestException({"error_code": "UNAUTHENTICATED", "message": "who"}), True),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), False),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}), False),
        (FileNotFoundError("plot.png"), False),
        (KeyError("x"), False),
    ],
)
def test_which_faults_pass(error, expected):
    assert passes(error) is expected


def test_a_reason_is_the_cause_and_one_line():
    text = (
        "API request to http://h/x failed with exception HTTPConnectionPool(host='h', port=1): Max"
        " retries exceeded with url: /x (Caused by NewConnectionError(\"HTTPConnection(host='h',"
        ' port=1): Failed to establish a new connection: [Errno 111] Connection refused"))'
    )
    assert reason(MlflowException(text)) == (
        "HTTPConnection(host='h', port=1): Failed to establish a new connection:"
        " [Errno 111] Connection refused"
    )
    text = "x (Caused by ProtocolError('Aborted.', ConnectionResetError(104, 'Reset by peer')))"
    assert reason(MlflowException(text)) == "Reset by peer"
    assert reason(ValueError("a\nb")) == "a"
    assert reason(ValueError()) == "ValueError"
