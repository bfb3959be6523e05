"""Redact secrets (passwords, tokens, signatures) in URLs, commands, logs and messages.

An allow list decides: scheme, host, port, path, the parameters of `KEPT` and the fragment of an
MLflow page stay in a URL; user, password, all other parameters and fragments are removed. The
process remembers secrets that it has removed, so that they are also found in messages of libraries
that quote them in another form.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import lru_cache
from urllib.parse import unquote

KEPT = ("charset", "region", "sslmode", "timeout")
"""URL parameters that are not secret and stay."""

PAGE = re.compile(r"#/experiments/\d+(?:/runs/[0-9a-f]{32})?")
"""Fragment of MLflow's pages of experiments and runs."""

CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
"""Schemes whose part before the `@` is a container, not a user."""

PATHS = ("file", "ftp", "gcs", "gs", "hdfs", "http", "https", "local", "memory", "s3", "s3a",
         "sftp", "sqlite", *CONTAINERS)  # fmt: skip
"""Schemes whose path may contain an `@` although there is no user."""

HIDDEN = "***"

LEAST = 6
"""Shorter secrets (in characters) are not searched for in text: they may be parts of words."""

SECRET = (
    r"(?:password|passwd|passphrase|secret|token|credential|signature|cookie"
    r"|(?:api|access|account|private|secret|storage)[_-]?key)"
)
"""Words in the names of secrets."""

VARIABLE = re.compile(rf"(?i).*{SECRET}|.*_pwd|.*_sas|.*connection_?string")
"""Names of environment variables whose value is a secret, from the first character to the last."""

TOKENS = re.compile(
    r"dapi[0-9a-f]{8,}|hf_[A-Za-z0-9]{10,}|gh[oprsu]_\w{10,}|github_pat_\w{10,}"
    r"|A[KS]IA[0-9A-Z]{12,}|glpat-[\w-]{10,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|\bsk-[\w-]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
"""Forms of the access tokens of known services, and JSON Web Tokens."""

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`|]*")
NAMED = re.compile(rf"(?i)((?:[\w.-]*{SECRET}[\w-]*|\b(?:pwd|pass|sig|sas|auth))=)[^\s'\"&;]+")
"""`password=…` and similar assignments anywhere in a text."""

SAID = re.compile(
    rf"(?i)((?:\b[\w-]*{SECRET}|\bpwd)['\"]?:\s*['\"]?"  # YAML, JSON, headers
    rf"|--[\w-]*{SECRET}\s+['\"]?"  # options of a command
    r"|\bauthorization['\"]?:\s*['\"]?(?:(?:basic|bearer|digest|negotiate|token)\s+)?"
    r"|\bbearer\s+)[^\s'\",;]{6,}"
)
"""The same with a colon or a blank; words of less than 6 characters are no secrets."""

BARE = re.compile(r"(?<![\w/.@-])[\w.+-]+:[^\s:/@'\"]{6,}@(?=[\w-]+(?:\.[\w-]+)+[:/]|[\w.-]+:\d)")
"""`user:password@` before a host with a dot or a port, without a scheme."""

SECRETS: set[str] = set()
"""Secrets found in URLs by this process."""


def parts(url: str) -> tuple[str, str, str, str]:
    """Split a URL: scheme, user info, host with port and path, rest (from `?`, `;` or `#` on).

    A password may contain `/?#@` unescaped. So where the URL begins with a user, or with a port
    that is not a number, everything before the last `@` counts as user info.
    """
    scheme, _, body = url.partition("://")
    head = re.split(r"[/?#;]", body, maxsplit=1)[0]
    user = ""
    if "@" in head or ("@" in body and (":" in head or scheme not in PATHS)):
        user, _, body = body.rpartition("@")
    at = re.search(r"[?#;]", body)
    end = at.start() if at else len(body)
    return scheme, user, body[:end], body[end:]


def url(given: str) -> str:
    """Remove the secrets of a URL, or of each URL in a chain (`a::b`).

    >>> url("postgresql://me:pw@db:5432/runs?password=x&sslmode=require")
    'postgresql://db:5432/runs?sslmode=require'
    >>> url("s3://KEY:SEC/RET@bucket/x"), url("sqlite:////a@b/mlflow.db")
    ('s3://bucket/x', 'sqlite:////a@b/mlflow.db')
    >>> url("http://127.0.0.1:5000/#/experiments/1"), url("http://127.0.0.1:5000/#/x")
    ('http://127.0.0.1:5000/#/experiments/1', 'http://127.0.0.1:5000/')
    """
    if "::" in given:
        return "::".join(url(each) for each in given.split("::"))
    if "://" not in given:
        return TOKENS.sub(HIDDEN, given)
    scheme, user, body, rest = parts(given)
    host, slash, path = body.partition("/")
    name, colon, port = host.rpartition(":")
    if colon and not port.isdigit() and not host.endswith("]"):
        host = name
    if scheme in CONTAINERS and user and ":" not in user and "@" not in user:
        host = f"{user}@{host}"
    query = rest[1:].partition("#")[0] if rest.startswith("?") else ""
    kept = [each for each in query.split("&") if each.partition("=")[0] in KEPT]
    page = rest if PAGE.fullmatch(rest) else ""
    told = f"{scheme}://{host}{slash}{path}{'?' if kept else ''}{'&'.join(kept)}{page}"
    return TOKENS.sub(HIDDEN, NAMED.sub(rf"\1{HIDDEN}", told))


def text(given: str) -> str:
    """Remove secrets from any text: those in its URLs, tokens, and secrets seen earlier.

    >>> text("store 's3://KEY:SECRET@b/x': refused; token=abc")
    "store 's3://b/x': refused; token=***"
    """
    if "://" in given:
        given = URL.sub(lambda found: trailed(found[0]), given)
    given = TOKENS.sub(HIDDEN, SAID.sub(rf"\1{HIDDEN}", NAMED.sub(rf"\1{HIDDEN}", given)))
    given = BARE.sub(f"{HIDDEN}@", given)
    for secret in known():
        given = given.replace(secret, HIDDEN)
    return given


def trailed(found: str) -> str:
    """Redact a URL in a sentence; punctuation after it is not part of the URL."""
    bare = found.rstrip(":,.)];}")
    return url(bare) + found[len(bare) :]


def command(words: Iterable[str]) -> str:
    """A command line without secrets, quoted for a shell and encodable in any locale.

    >>> command(["sweeps", "run", "a.yaml", "--set", "mlflow.tracking_uri=mysql://u:p q@h/d"])
    'sweeps run a.yaml --set mlflow.tracking_uri=mysql://h/d'
    """
    return shlex.join(word(each) for each in words)


def word(given: str) -> str:
    """Redact one word of a command line: `URL`, `KEY=URL` or any text."""
    printed = given.encode(errors="backslashreplace").decode()
    if found := re.fullmatch(r"((?:[^:/?]*=)?\s*['\"]?)([A-Za-z][A-Za-z0-9+.:-]*://.*)", printed,
                             re.DOTALL):  # fmt: skip
        learn(found[2])
        return found[1] + url(found[2])
    return text(printed)


def has_secret(given: str) -> bool:
    """Whether a text contains a token, or a URL that `url` would change."""
    whole = [given] if re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", given) else URL.findall(given)
    return any(url(each) != each for each in whole) or bool(TOKENS.search(given))


def learn(given: str) -> None:
    """Remember the secrets of a URL, so that `text` removes them everywhere."""
    for each in given.split("::"):
        if "://" not in each:
            continue
        _, user, _, rest = parts(each)
        name, _, password = user.partition(":")
        values = [pair.partition("=")[2] for pair in re.split(r"[?&;#]", rest)
                  if pair.partition("=")[0] not in KEPT]  # fmt: skip
        found = [password, *values, *([name] if len(name) > 2 * LEAST else [])]
        SECRETS.update(secret for raw in found for secret in (raw, unquote(raw)))


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value of an environment variable of this name is a secret."""
    return bool(VARIABLE.fullmatch(name))


def known() -> Sequence[str]:
    """All known secrets, the longest first: those of URLs and of the environment."""
    # Names first: this runs for each piece of a printed line, and reading all values takes longer.
    named = {os.environ.get(name, "") for name in os.environ if is_secret_name(name)}
    found = SECRETS | {value for value in named if value.lower() not in ("false", "none")}
    return sorted((secret for secret in found if len(secret) >= LEAST), key=len, reverse=True)


class Redacting(logging.Filter):
    """Logging filter that removes secrets from messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record's message; always True, so no record is dropped."""
        record.msg, record.args = text(record.getMessage()), ()
        return True
