"""Resolve the sources of models and data: a folder, the embedded pool, the Hugging Face hub, or
ModelScope (models alone)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from actors.files.documents import checked, read_json
from actors.files.embedded_pool import IMAGES, TEXT, EmbeddedPool, locate
from actors.files.paths import Plain
from fusion.errors import InputError, one_line, reading

EMBEDDED = "embedded:"

MODELSCOPE = "modelscope:"
"""Before the id of a model that is on ModelScope."""

OF_TEXTS = "text/"
"""After `embedded:`: the pool of texts."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
"""`name` or `org/name`, with `@revision` for another branch than main."""

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Files of a model to download from the hub; never a pickle."""

INDEX = "model.safetensors.index.json"

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's configuration of an adapter; its weights are in one of the next two files."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"

LINEARIZED_WEIGHTS = "linearized_adapter_model.safetensors"


def resolve(source: str, *, what: str) -> Path:
    """The folder of a model: a path, `embedded:base`, `:extractor`, `:<task>`, or a hub id.

    `embedded:text/base` and `embedded:text/<task>` are those of the embedded text pool, and
    `modelscope:org/name` is a model on ModelScope.

    The local hub cache is searched first, so that a sweep runs offline and a new upload does not
    change it; `org/name@revision` names a revision.

    Args:
        source: the source in the spec.
        what: the spec's field, for messages, for example "pool.base".

    Raises:
        InputError: no such source; the message lists what is allowed.
    """
    with reading(f"{what}: {source!r}"):
        return resolved(source, what)


def resolved(source: str, what: str) -> Path:
    """The folder of a model. See `resolve`."""
    folder = local(source, what)
    if folder is not None:
        return folder
    if source.startswith(EMBEDDED):
        pool = embedded_pool(source, what)
        name = member_name(source)
        if name == "extractor":
            return extractor_of(pool, source, what)
        return pool.base if name == "base" else member(pool.experts, source, what)
    if source.startswith(MODELSCOPE):
        return from_modelscope(source, what)
    return from_hub(source, what)


def on_modelscope(source: str) -> str:
    """A source in which a hub id is one of ModelScope; folders and other sources stay.

    >>> on_modelscope("org/name@v2"), on_modelscope("./models/a"), on_modelscope("embedded:base")
    ('modelscope:org/name@v2', './models/a', 'embedded:base')
    """
    if not HUB_ID.fullmatch(source) or Path(source).expanduser().exists():
        return source
    return f"{MODELSCOPE}{source}"


def config_folder(source: str, *, what: str) -> Path:
    """A folder with a model's `config.json`, which is fetched alone from the hub.

    Raises:
        InputError: no such source.
    """
    if source.startswith(EMBEDDED) or not HUB_ID.fullmatch(source) or local(source, what):
        return resolve(source, what=what)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    for local_only in (True, False):
        try:
            file = huggingface_hub.hf_hub_download(
                name, "config.json", revision=revision or None, local_files_only=local_only
            )
            return Path(file).parent
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            continue
    raise InputError(f"{what}: {source!r}: no such folder, and no config.json on the hub")


def resolve_data(source: str, *, what: str) -> tuple[Path | None, str | None]:
    """The folder of a data set, and its configuration: `path[:config]` or `embedded:<task>`.

    Returns no folder for a hub id.

    Raises:
        InputError: a missing path, or an unknown embedded task.
    """
    with reading(f"{what}: {source!r}"):
        if source.startswith(EMBEDDED):
            return member(embedded_pool(source, what).data, source, what), None
        path, _, config = source.rpartition(":")
        if config and path and not Path(source).expanduser().exists():
            folder = local(path, what)
            if folder is not None:
                return folder, config
        return local(source, what), None


def local(source: str, what: str) -> Path | None:
    """The folder that a path names; None if the source does not look like a path."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise InputError(
            f"{what}: {source!r}: a file; a folder or a hub id is needed; the file's folder is"
            f" {path.parent}"
        )
    if path.is_symlink():
        raise InputError(f"{what}: {source!r}: a link to nothing: {path.readlink()}")
    if source and path.exists():
        raise InputError(f"{what}: {source!r}: no folder; a folder or a hub id is needed")
    if source.startswith(("/", "./", "../", "~")):
        raise InputError(f"{what}: {source!r}: no such folder")
    return None


def embedded_pool(source: str, what: str) -> EmbeddedPool:
    """The embedded pool of this machine that a source names: of images, or of texts.

    Raises:
        InputError: it has not been built.
    """
    text = source.startswith(f"{EMBEDDED}{OF_TEXTS}")
    pool = locate(kind=TEXT if text else IMAGES)
    if pool is None:
        name = "embedded text pool" if text else "embedded pool"
        command = "sweeps quickstart --text" if text else "sweeps quickstart"
        raise InputError(f"{what}: {source!r}: the {name} is not built; run `{command}` first")
    return pool


def member_name(source: str) -> str:
    """Name of a member of an embedded pool.

    >>> member_name("embedded:base"), member_name("embedded:text/base")
    ('base', 'base')
    """
    return source.removeprefix(EMBEDDED).removeprefix(OF_TEXTS)


def extractor_of(pool: EmbeddedPool, source: str, what: str) -> Path:
    """The embedded pool's extractor, which pools of the first releases lack."""
    if not pool.extractor.exists():
        raise InputError(
            f"{what}: {source!r}: the embedded pool was built before it had an extractor;"
            " run `python -m actors.embedded` to add it"
        )
    return pool.extractor


def member(folders: Mapping[str, Path], source: str, what: str) -> Path:
    """The folder of one task in the embedded pool."""
    name = member_name(source)
    if name not in folders:
        raise InputError(
            f"{what}: {source!r}: no such task in the embedded pool; there: {sorted(folders)}"
        )
    return folders[name]


def from_hub(source: str, what: str) -> Path:
    """A model's snapshot folder in the hub cache; downloads it if it is incomplete."""
    if not HUB_ID.fullmatch(source):
        raise InputError(
            f"{what}: {source!r}: neither a folder nor a hub id;"
            " allowed: a folder, embedded:NAME, name or org/name[@revision]"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    options = {"repo_id": name, "revision": revision or None, "allow_patterns": MODEL_FILES}
    try:
        cached = Path(huggingface_hub.snapshot_download(**options, local_files_only=True))
        if complete(cached):
            return cached
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        pass  # not in the cache: download it
    try:
        return Path(huggingface_hub.snapshot_download(**options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = "not in the local hub cache, and the hub cannot be reached"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            reason = f"the hub answers {status} (is the name right, is it public?)"
        raise InputError(f"{what}: {source!r}: no such folder; as a hub id: {reason}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what}: {source!r}: no such folder; as a hub id: {reason}") from None


def from_modelscope(source: str, what: str) -> Path:
    """A model's folder in the cache of ModelScope; downloads it if it is incomplete.

    Raises:
        InputError: no id, the library is not installed, or no such model there.
    """
    given = source.removeprefix(MODELSCOPE)
    if not HUB_ID.fullmatch(given) or "/" not in given.partition("@")[0]:
        raise InputError(f"{what}: {source!r}: {MODELSCOPE}org/name[@revision] needed")
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError:
        raise InputError(
            f"{what}: {source!r}: needs the library of ModelScope:"
            " pip install 'fusion-sweeps[modelscope]'"
        ) from None
    name, _, revision = given.partition("@")
    options = {"model_id": name, "revision": revision or None, "allow_patterns": MODEL_FILES}
    try:
        cached = Path(snapshot_download(**options, local_files_only=True))
        if complete(cached):
            return cached
    except Exception:
        pass  # the library has no one class for a model that is not in its cache
    try:
        return Path(snapshot_download(**options))
    except Exception as error:  # as above; the network may fail too
        reason = one_line(error)[:200]
        raise InputError(f"{what}: {source!r}: ModelScope: {reason}") from None


def complete(folder: Path) -> bool:
    """Whether a cached snapshot holds a configuration and all its weights."""
    if (folder / ADAPTER_CONFIG).exists():
        return any((folder / file).exists() for file in (ADAPTER_WEIGHTS, LINEARIZED_WEIGHTS))
    if not (folder / "config.json").exists():
        return False
    if (folder / "model.safetensors").exists():
        return True
    try:
        where = checked(dict[str, Plain], read_json(folder / INDEX).get("weight_map"), INDEX)
    except InputError:
        return False
    return all((folder / file).exists() for file in where.values())
