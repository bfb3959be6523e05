"""Secrets: no writer and no message has them, in whatever kind of URL they stand."""

import io
import json
import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import InputError
from sweeps.cli import ray_job
from sweeps.cli.ending import end
from sweeps.console import redact
from sweeps.console.escape import Screen
from sweeps.console.printable import printable
from sweeps.spec.errors import Fault
from sweeps.spec.sweep import load
from sweeps.storage import store as storage
from sweeps.tracking import mlflow_store
from tests.sweeps.program import sweeps

SECRET = "hunter2/S3+cret"
URLS = [
    f"postgresql://me:{SECRET}@db:5432/runs",
    f"mysql+pymysql://me:{SECRET}@db/runs",
    f"mssql+pyodbc://me:{SECRET}@db/runs?driver=x",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx;PWD%3D{SECRET}",
    f"databricks://token:{SECRET}@host",
    f"https://me:{SECRET}@host:443/path",
    f"https://host/path?password={SECRET}",
    f"https://host/path?a=1&sig={SECRET}#x",
    f"https://host/path#{SECRET}",
    f"s3://KEYKEYKEYKEY1:{SECRET}@bucket/path",
    f"abfs://container@account.dfs.core.windows.net/path?sig={SECRET}",
    f"simplecache::s3://KEY:{SECRET}@bucket/path",
    f"jdbc:sqlserver://host:1433;user=me;password={SECRET}",
    f"sftp://me:{SECRET}@host/path",
    f"mysql://{SECRET}@host/path",
]


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch):
    monkeypatch.setattr(redact, "SECRETS", set())


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_shown_without_its_secret(url):
    said = [redact.url(url), redact.text(f"store {url}: refused"), redact.text(repr(url))]
    said += [redact.command(["sweeps", "run", "--storage", url, f"--storage={url}"])]
    said += [redact.command(["--set", f"mlflow.tracking_uri={url}"]), str(Fault(("a",), url, "x"))]
    said += [printable(f"{url} is away"), end(InputError(f"{url}: no")).lines[0]]
    for each in said:
        assert "hunter2" not in each
        assert "S3+cret" not in each
    assert redact.has_secret(url)


@pytest.mark.parametrize(
    "url",
    ["sqlite:////home/me@work/mlflow.db", "http://127.0.0.1:5000", "https://host/a/b",
     "s3://bucket/run@2/x", "databricks://profile", "file:///a/b", "http://[::1]:5000/x", "/a/b",
     "abfs://container@account.dfs.core.windows.net/path", "openai/clip-vit-base-patch32"],
)  # fmt: skip
def test_what_has_no_secret_stays_as_it_is(url):
    assert redact.url(url) == url
    assert redact.text(url) == url
    assert not redact.has_secret(url)


PASSWORD = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="'\"<>`|"), min_size=6,
    max_size=12,
)  # fmt: skip


@given(PASSWORD, st.sampled_from(["postgresql", "s3", "https", "mysql+pymysql"]))
def test_any_password_is_left_out_of_a_url_and_of_a_command(password, scheme):
    password = f"zq{password}"
    url = f"{scheme}://user:{password}@host/db"
    assert password not in redact.url(url)
    assert redact.url(url).endswith("host/db")
    assert password not in redact.command(["run", "--storage", url])


@pytest.mark.parametrize(
    "said",
    ["refused: ?X-Amz-Signature=S", "Authorization: Bearer S", "authorization: Basic S==",
     '{"Authorization": "Bearer S"}', "password: S", '{"password": "S"}', "{'token': 'S'}",
     "X-Api-Key: S", "--password S", "private_key=S", "passphrase=S", "Set-Cookie: S",
     "me:S@db.example.com:5432/runs", "me:S@db:5432", "github_pat_SS", "glpat-SS", "sk-SS",
     "xoxb-1234-S", "eyJhbGciOiJI.S.S"],
)  # fmt: skip
def test_secrets_in_other_forms_than_urls(said):
    secret = "Zq7HUNTER22xyzq"
    text = said.replace("S", secret) if "Signature" not in said else said[:-1] + secret
    text = text.replace(f"{secret}et-Cookie", "Set-Cookie")
    assert "HUNTER" not in redact.text(f"store: {text}, refused")
    assert redact.text(f"store: {text}, refused").startswith("store: ")


@pytest.mark.parametrize(
    "said",
    ["tokenizer: token 5 is 'a', in the base 'b'", "up to 512 tokens: ids", "no secret: yes",
     "imdb:plain_text@refs/convert/parquet", "nyu-mll/glue:cola@main", "tasks.a: label: 'label'",
     "placement.labels: {'a': 'b'}", "a token: no", "keys: context-1", "me@example.com: a user"],
)  # fmt: skip
def test_words_that_are_no_secrets_stay(said):
    assert redact.text(said) == said


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD",
     "AZURE_CLIENT_SECRET", "MYSQL_PWD", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY"],
)  # fmt: skip
def test_secrets_of_the_environment(name, monkeypatch):
    monkeypatch.setenv(name, "Zq7HUNTER22xyzq")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/where")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    said = "failed with Zq7HUNTER22xyzq in /home/me/where, parallel"
    assert redact.text(said) == "failed with *** in /home/me/where, parallel"


def test_a_secret_once_met_is_left_out_of_other_texts():
    storage.open_store(f"memory://KEYKEYKEYKEY1:{SECRET}@bucket", "s")
    assert redact.text(f"cannot connect with {SECRET}") == "cannot connect with ***"


@pytest.mark.parametrize("url", URLS)
def test_a_sweep_file_with_a_secret_is_refused(tmp_path, url):
    spec = {
        "name": "s",
        "pool": {"base": "b", "experts": {"a": "m"}},
        "methods": {"ties": {}},
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec | {"mlflow": {"tracking_uri": url}}))
    for overrides, content in [
        ([], spec | {"mlflow": {"tracking_uri": url}}),
        ([f"mlflow.tracking_uri={url}"], spec),
        ([], spec | {"pool": {"base": url, "experts": {"a": "m"}}}),
    ]:
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(
            InputError, match=r"would be kept with the results.*environment"
        ) as said:
            load(file, overrides)
        assert "hunter2" not in str(said.value)
        assert "S3+cret" not in str(said.value)


def test_errors_of_stores_have_no_secret(tmp_path, monkeypatch):
    uri = f"postgresql://me:{SECRET}@127.0.0.1:1/runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def refuses(where):
        raise OSError(f"no route to {where}, user me, {SECRET}")

    monkeypatch.setattr(mlflow_store, "client_of", refuses)
    with pytest.raises(InputError) as said:
        mlflow_store.connect(None, None, tmp_path)
    assert "hunter2" not in str(said.value)
    with pytest.raises(InputError) as said:
        storage.open_store(f"nosuch://KEY:{SECRET}@bucket/x", "s")
    assert "hunter2" not in str(said.value)
    store = storage.open_store(f"memory://KEY:{SECRET}@bucket/x", "s")

    def fails():
        raise OSError(f"403 for KEY:{SECRET}")

    with pytest.raises(InputError) as said:
        storage.guarded(store, fails)
    assert "hunter2" not in str(said.value)


def test_the_terminal_and_the_log_have_no_secret(caplog):
    stream = io.StringIO()
    Screen(file=stream, width=300).print(f"storage s3://KEY:{SECRET}@bucket: away", markup=False)
    assert stream.getvalue().strip() == "storage s3://bucket: away"
    record = logging.LogRecord("x", 30, "f", 1, "at %s", (f"s3://KEY:{SECRET}@bucket",), None)
    assert redact.Redacting().filter(record)
    assert record.getMessage() == "at s3://bucket"


def test_a_job_is_given_no_secret(monkeypatch):
    uri = f"postgresql://me:{SECRET}@db/runs"
    given = ray_job.environment({"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "e"})
    assert "hunter2" not in json.dumps(given)
    assert given["env_vars"]["MLFLOW_EXPERIMENT_NAME"] == "e"


def test_words_that_cannot_be_written_are_written_out():
    assert redact.command(["run", "a\udce9.yaml"]).encode() == b"run 'a\\udce9.yaml'"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_sweep_writes_no_secret(tiny_pool, tmp_path):
    spec = tiny_pool.write(tmp_path / "tiny.yaml")
    url = f"memory://KEYKEYKEYKEY1:{SECRET}@bucket/x?sig={SECRET}"
    done = sweeps("run", spec, "--storage", url, "--set", "mlflow.experiment=e", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    written = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if b"hunter2" in path.read_bytes()] == []
    command = json.loads((tmp_path / "outputs/tiny/comparison.json").read_text())["command"]
    assert "--storage memory://bucket/x" in command
