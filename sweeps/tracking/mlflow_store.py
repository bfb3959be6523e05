"""Connect to the MLflow store: where it is, whether it can be used, which errors may pass.

This file, `tracker.py`, `run_fields.py` and `logged_model.py` are the only ones that know MLflow.
Here it is imported inside functions, since it takes two seconds: `sweeps plan` does without it
where the store is an SQLite file that is complete.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import sealed_json, unsealed_json
from actors.files.once import alone
from fusion.errors import InputError, reading
from sweeps.console import redact
from sweeps.tracking import sqlite_store
from sweeps.tracking.experiment_page import EXPERIMENT_TAGS

# MLflow would send a request again by itself, and a repeated "create" is a second run: we try
# again ourselves (sender.py), and look first whether the lost answer was to something done.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Two printed lines and one request for each run that ends, otherwise.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A model is no copy of the project that lies in the working directory.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "fusion-sweeps"

PASSING = (401, 408, 429)
"""HTTP statuses below 500 that may be over in a minute: a server that starts, or is busy."""

CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


HALF = re.compile("already exists|duplicate column|no such (table|column)")
"""What a migration says that finds another one's halves."""

WAIT = "FUSION_SWEEPS_MLFLOW_WAIT"
"""Environment: seconds, in all, that the end of a sweep waits for a store that does not take
results."""


def patience() -> float:
    """Seconds to wait for MLflow: `$FUSION_SWEEPS_MLFLOW_WAIT`, default 60.

    Raises:
        InputError: it is no number of seconds.
    """
    given = os.environ.get(WAIT, "60")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise InputError(f"${WAIT}: {given!r}: a number of seconds allowed")
    return seconds


def default_uri(outputs: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, else an SQLite file in the outputs folder, by its absolute path."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{(outputs / 'mlflow.db').resolve()}"


UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def browsed(uri: str, page: str) -> str:
    """Address of a page; of a database, as `mlflow ui` shows it.

    >>> [browsed(uri, "#/experiments/1") for uri in ("http://host:80/", "sqlite:////a.db")]
    ['http://host:80/#/experiments/1', 'http://127.0.0.1:5000/#/experiments/1']
    """
    return f"{UI if serve_command(uri) else uri.rstrip('/')}/{page}"


def serve_command(uri: str) -> str:
    """The command that serves a database's pages; empty for a server, which serves its own.

    >>> serve_command("sqlite:////a.db"), serve_command("http://host:80/")
    ('mlflow ui --backend-store-uri sqlite:////a.db', '')
    """
    served = uri.startswith(("http:", "https:"))
    return "" if served else f"mlflow ui --backend-store-uri {uri}"


def connect(
    uri: str | None,
    experiment: str | None,
    outputs: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, created if missing. Initialises a new SQLite store.

    Of several processes one makes the store and the experiment; `say` prints that this one waits.

    Raises:
        InputError: the store cannot be reached, opened or written, or the password is wrong.
    """
    where = uri or default_uri(outputs)
    name = experiment or EXPERIMENT
    redact.learn(where)
    check(where)
    patience()
    import mlflow  # noqa: F401  (it sets the level of its logger)

    quiet = logging.getLogger("alembic"), logging.getLogger("mlflow")
    for logger in quiet:  # the migrations of a fresh store are not news
        logger.setLevel(logging.WARNING)
    if (file := sqlite_store.file_of(where)) is not None:
        set_up(file, where, say)
    return opened(where, name, outputs)


def check_reachable(uri: str, experiment: str | None) -> None:
    """Run the checks of `connect` that do not create a store or an experiment.

    Raises:
        InputError: see `connect`.
    """
    check(uri)
    patience()
    if (file := sqlite_store.file_of(uri)) is not None:
        if sqlite_store.is_new(file):
            return
        tables, revision = newest()
        try:
            fault = sqlite_store.fault(file, tables, revision)
        except Exception as error:  # any error on a file that is not a store
            raise InputError(
                f"mlflow.tracking_uri: {redact.url(uri)!r}: {unusable(error)}"
            ) from error
        if fault:
            raise InputError(
                f"mlflow.tracking_uri: {redact.url(uri)!r}: {sqlite_store.advice(file, fault)}"
            )
        if sqlite_store.revision_of(file) != revision:
            return  # `connect` brings it up to date first
        if sqlite_store.usable(file, experiment or EXPERIMENT):
            return
    with reading(f"mlflow.tracking_uri: {redact.url(uri)!r}"):
        client = client_of(uri)
    known(client, experiment or EXPERIMENT, uri)


def client_of(uri: str) -> MlflowClient:
    """A client of the store at a URI; imports MLflow."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


RACED = re.compile(r"(?i)unique ?(?:violation|constraint)|duplicate (?:key|entry)")
"""What PostgreSQL, SQLite and MySQL say of a row that another client has inserted."""


def known(client: MlflowClient, name: str, where: str) -> Any:
    """The experiment of that name, if it exists and can be written; None if it does not exist.

    Raises:
        InputError: the store cannot be reached or written, or the experiment was deleted.
    """
    try:
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "active":
            for key, value in EXPERIMENT_TAGS.items():  # a harmless write: may this user write?
                tag_experiment(client, found.experiment_id, key, value)
    except Exception as error:  # any error of the store: SQL, HTTP, operating system
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: {unusable(error)}"
        ) from error
    if found is None or found.lifecycle_stage == "active":
        return found
    raise InputError(
        f"mlflow.experiment: {name!r}: deleted at {redact.url(where)}; restore it or give another"
        " name"
    )


def set_up(file: Path, where: str, say: Callable[[str], None]) -> None:
    """Create an SQLite store, or migrate one of an older MLflow.

    Raises:
        InputError: it cannot be made; or what is there is half of one.
    """
    tables, revision = newest()
    try:
        if sqlite_store.revision_of(file) != revision:
            with alone(file, say):
                if sqlite_store.is_new(file):
                    with sqlite_store.made(file) as part:
                        initialise(f"sqlite:///{part.resolve()}")
                elif sqlite_store.fault(file, tables, revision) is None:
                    initialise(where)
        fault = sqlite_store.fault(file, tables, revision)
    except InputError as error:
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: cannot be used: {error}"
        ) from error
    except Exception as error:  # any error of the store: SQL, operating system
        fault = sqlite_store.fault(file, tables, revision) if file.exists() else None
        if fault is None and HALF.search(str(error)):
            fault = reason(error)
        if fault is None:
            raise InputError(
                f"mlflow.tracking_uri: {redact.url(where)!r}: {unusable(error)}"
            ) from error
    if fault:
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: {sqlite_store.advice(file, fault)}"
        )


def initialise(uri: str) -> None:
    """Let MLflow create or migrate its tables, as it does when a store is opened."""
    client_of(uri).search_experiments(max_results=1)


def newest() -> tuple[Collection[str], str]:
    """Tables and schema revision of this MLflow; found out once a version, then cached."""
    file = cache_dir() / "mlflow" / f"{version('mlflow')}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = unsealed_json(file.read_bytes())
        return tuple(map(str, found["tables"])), str(found["revision"])
    tables, revision = own_schema()
    with replacing(file) as part:
        part.write_text(sealed_json({"tables": list(tables), "revision": revision}))
    return tables, revision


def own_schema() -> tuple[Collection[str], str]:
    """Tables and schema revision of this MLflow, from its own code."""
    from alembic.script import ScriptDirectory
    from mlflow.store.tracking.dbmodels.models import Base

    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "store" / "db_migrations"
    return tuple(Base.metadata.tables), ScriptDirectory(str(folder)).get_current_head() or ""


def opened(where: str, name: str, outputs: Path) -> tuple[MlflowClient, str]:
    """See `connect`."""
    try:
        client = client_of(where)
    except Exception as error:  # a URI of no store, say
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: {unusable(error)}"
        ) from error
    if (found := known(client, name, where)) is not None:
        return client, found.experiment_id
    try:
        return client, made(client, name, where, outputs)
    except Exception as error:  # as above
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: {unusable(error)}"
        ) from error


def check(where: str) -> None:
    """Refuse invalid store URIs, and passwords, because the URI is kept and shown."""
    if where.startswith("file:") or "://" not in where:
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: MLflow keeps no file stores any more;"
            " sqlite:///ABSOLUTE_PATH or http(s)://HOST:PORT allowed"
        )
    if where.startswith(("http:", "https:")) and redact.has_secret(where):
        raise InputError(
            f"mlflow.tracking_uri: {redact.url(where)!r}: has a user or a password in it, which"
            f" would be kept with the results; {CREDENTIALS} allowed (environment)"
        )


def made(client: MlflowClient, name: str, where: str, outputs: Path) -> str:
    """Create an experiment; if another sweep created it meanwhile, return its id."""
    from mlflow.exceptions import MlflowException

    # A server has an artifact root of its own; a sqlite store would use the working directory.
    local = where.startswith("sqlite:")
    place = (outputs / "mlflow-artifacts" / name).resolve().as_uri() if local else None
    try:
        made_id: str = client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)
        return made_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        found_id: str = found.experiment_id
        return found_id


def tag_experiment(client: MlflowClient, experiment: str, key: str, value: str) -> None:
    """Set a tag of an experiment, also where other sweeps set it for the first time just then.

    MLflow looks whether the tag is there and then inserts it, so the database refuses all but the
    first of those inserts. Called again, MLflow finds the tag and changes it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(experiment, key, value)
    except MlflowException as error:
        if not RACED.search(str(error)):
            raise
        client.set_experiment_tag(experiment, key, value)


def unusable(error: Exception) -> str:
    """Error message for a store that cannot be used."""
    status = status_of(error)
    if status == 401:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if user is None or "MLFLOW_TRACKING_PASSWORD" not in os.environ:
            return f"asks for a user and a password; set {CREDENTIALS}"
        return f"wrong user or password (user {user!r}); {CREDENTIALS} are asked for"
    if status == 403:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        return f"user {user!r} may not write here; EDIT permission on the experiment is needed"
    return f"cannot be used: {reason(error)}"


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error; None if it has none."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    status = getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if status is not None else None


def passes(error: Exception) -> bool:
    """Whether the call may succeed later: the server or its database is away or busy.

    >>> passes(ConnectionError("refused")), passes(ValueError("no such metric"))
    (True, False)
    """
    status = status_of(error)
    if status is not None:
        return status >= 500 or status in PASSING
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def reason(error: BaseException) -> str:
    """An error in one line of at most 200 characters; of a failed connection, its cause.

    >>> reason(OSError('Max retries exceeded (Caused by ResponseError("too many 503 answers"))'))
    'too many 503 answers'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    # SQLAlchemy begins with where it was, when a full disk, say, kept it from going on.
    told = [line for line in lines if not line.startswith("(raised as a result of")]
    text = redact.text((told or lines or [type(error).__name__])[0].strip())
    cause = re.split(r"\([\"']", text.partition("Caused by ")[2])[-1].rstrip(")\"'")
    return (cause.rpartition(", '")[2] or text)[:200]
