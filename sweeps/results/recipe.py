"""Recipe files: what is needed to rebuild a row of the comparison as a model; no weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from safetensors.torch import save_file

from actors.artifacts.recipe import REFERENCES, Recipe
from actors.artifacts.statistics_file import opened, place
from actors.checkpoints.checkpoint import Checkpoint, content_hash, read
from actors.experts.recipe import RESULTS, learned_beta, merged, of_task, rebuilt, results_dtype
from actors.families.registry import family_in
from actors.files.atomic import replacing, share
from actors.files.documents import checked, dump_yaml, read_bytes, read_json, read_yaml
from actors.files.paths import Plain, inside
from actors.pool.pool import Pool, open_pool
from actors.pool.vectors_on_disk import filed_vectors
from fusion.errors import InputError, unknown
from fusion.registry import METHODS
from sweeps.results.ledger import write_text

LEARNED_BYTES = 1 << 33
"""Of what was learned, at most: routers of a large tower have some GB."""


@dataclass(frozen=True)
class Model:
    """A source checkpoint and its content hash."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    source: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class RecipeFile:
    """A fused model: its method, parameters and ingredients."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: Plain
    params: Mapping[str, Any]
    base: Model
    experts: Annotated[Mapping[Plain, Model], Field(min_length=1)]
    code: str
    """Version of this package."""
    sweep: str
    selected: Mapping[str, Any] = field(default_factory=dict)
    """Split, metric and value it was chosen by."""
    learned: Model | None = None
    """Of a method that learns: its gate or coding file, beside the recipe."""
    statistics: Sequence[Plain] = ()
    """Of a method that merges by statistics of data: each expert's key in the cache."""
    result_dtype: str = "base"
    """What the model is rounded to: each tensor to its dtype in the base, or to float32."""
    preprocessing: str | None = None
    """Fingerprint of the base's preprocessing; None: written before it was kept."""
    tokenizer: str | None = None
    """Fingerprint of the base's tokenizer files; None: the base has none, or as above."""


def identify(checkpoint: Checkpoint) -> Model:
    """Source and content hash of a checkpoint; a folder's path is made absolute."""
    local = Path(checkpoint.source).is_dir()
    source = str(checkpoint.folder.resolve()) if local else checkpoint.source
    return Model(source, content_hash(checkpoint))


def beside(base: Checkpoint) -> dict[str, str]:
    """Fingerprints of files beside the base's weights that decide a row's numbers.

    Raises:
        InputError: the preprocessing cannot be read.
    """
    return family_in(base).companions(base)


def check_beside(recipe: RecipeFile, base: Checkpoint, path: Path) -> None:
    """Raise InputError if the base's preprocessing or tokenizer has changed since the recipe."""
    recorded = {"preprocessing": recipe.preprocessing, "tokenizer": recipe.tokenizer}
    if not any(recorded.values()):
        return
    found = beside(base)
    for name, was in recorded.items():
        if was is not None and found.get(name) != was:
            raise InputError(
                f"{path}: base: {base.folder}: its {name} has changed since the recipe was"
                " written; a model with it would not have the row's accuracy"
            )


def write(
    folder: Path,
    row: str,
    pool: Pool,
    params: Mapping[str, Any],
    sweep: str,
    selected: Mapping[str, Any],
    learned: Path | None = None,
    statistics: Sequence[str] = (),
    result_dtype: str = "base",
) -> Path:
    """Write `<folder>/<row>.yaml` atomically; a learned file is copied beside it."""
    content = {
        "method": row,
        "params": dict(params),
        "base": vars(identify(pool.base)),
        "experts": {task: vars(identify(expert)) for task, expert in pool.experts.items()},
        "code": version("fusion-sweeps"),
        "sweep": sweep,
        "selected": dict(selected),
        "result_dtype": result_dtype,
        **beside(pool.base),
    }
    if learned is not None:
        data = learned.read_bytes()
        with replacing(folder / f"{row}.safetensors") as part:
            part.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        content["learned"] = vars(Model(f"{row}.safetensors", digest))
    if statistics:
        content["statistics"] = list(statistics)
    path = folder / f"{row}.yaml"
    write_text(path, dump_yaml(content))
    return path


def load(path: Path) -> RecipeFile:
    """Read and check a recipe file.

    Raises:
        InputError: no such file, not YAML, fields missing, unknown or of another type, a method
            that there is not.
    """
    where = f"{path}: not a recipe as `sweeps run` writes it"
    found = checked(RecipeFile, read_yaml(path), where)
    if found.method not in METHODS and found.method not in REFERENCES:
        raise InputError(f"{path}: method: {unknown('method', found.method, METHODS)}")
    if found.result_dtype not in RESULTS:
        allowed = " or ".join(RESULTS)
        raise InputError(f"{path}: result_dtype: {found.result_dtype!r}; {allowed} allowed")
    return found


def export(path: Path, out: Path) -> None:
    """Rebuild a recipe's model as a Hugging Face folder: the base with its vision tower replaced.

    A method that makes one model a task gives one folder a task, in `out`.

    Raises:
        InputError: `out` is there already; an ingredient changed since; a recipe without a model.
    """
    recipe = load(path)
    check_new(out)
    check_single(recipe, path)
    data = learned_data(recipe, path)
    pool = open_pool(recipe.base.source, {t: m.source for t, m in recipe.experts.items()})
    for name, checkpoint, model in (
        ("base", pool.base, recipe.base),
        *((task, pool.experts[task], model) for task, model in recipe.experts.items()),
    ):
        found = content_hash(checkpoint)
        if found != model.sha256:
            raise InputError(
                f"{path}: {name}: {model.source} has changed: sha256 {found[:12]}…; "
                f"the recipe was made from {model.sha256[:12]}…"
            )
    check_beside(recipe, pool.base, path)
    statistics = known_statistics(recipe, pool, path)
    what = Recipe(recipe.method, recipe.params, data)
    row = METHODS.get(recipe.method)
    if row is not None and row.output == "model_per_task":
        vectors = replace(filed_vectors(pool), results=results_dtype(recipe.result_dtype))
        with new_folder(out) as part:
            for task in pool.tasks:
                place = inside(part, task, f"{path}: experts")
                fused = merged(vectors, of_task(what, task))
                write_folder(pool.base, fused, place, path, recipe.result_dtype)
        return
    fused = rebuilt(pool, what, recipe.result_dtype, statistics)
    fused |= pool.family.tempered(pool.base, fused, learned_beta(what))
    write_folder(pool.base, fused, out, path, recipe.result_dtype)


def known_statistics(recipe: RecipeFile, pool: Pool, path: Path) -> Mapping[str, Any] | None:
    """The statistics that a recipe names; None: its method reads none.

    Raises:
        InputError: this machine's cache does not have them.
    """
    row = METHODS.get(recipe.method)
    if row is None or "statistics" not in row.reads:
        return None
    segments = range(len(pool.family.segments(pool.base)))
    files = [place(key, at) for key in recipe.statistics for at in segments]
    gone = next((file for file in files if not file.exists()), None)
    if gone is not None or not files:
        raise InputError(
            f"{path}: statistics: {gone or 'none named'}: not in this machine's cache; they are of"
            f" images, so run the sweep {recipe.sweep!r} here (--resume), then export"
        )
    return opened(recipe.statistics, segments)


def check_single(recipe: RecipeFile, path: Path) -> None:
    """Raise InputError if a recipe's method makes no single model."""
    row = METHODS.get(recipe.method)
    if recipe.method == "experts" or (row is not None and row.output == "logits"):
        raise InputError(
            f"{path}: {recipe.method}: fuses logits; there is no single model to build"
        )
    if row is not None and row.output == "model_per_sample":
        what = "routers are" if "mlp_blocks" in row.requires else "gate is"
        kept = f"; its {what} {learned_file(recipe.learned, path)}" if recipe.learned else ""
        raise InputError(
            f"{path}: {recipe.method}: one model a sample; there is no single model to build{kept}"
        )


def learned_file(learned: Model, path: Path) -> Path:
    """Path of the learned file: beside the recipe."""
    return inside(path.parent, learned.source, f"{path}: learned.source")


def learned_data(recipe: RecipeFile, path: Path) -> bytes | None:
    """Content of the learned file, if the recipe names one.

    Raises:
        InputError: the file is gone or has changed.
    """
    if recipe.learned is None:
        return None
    file = learned_file(recipe.learned, path)
    data = read_bytes(file, f"{path}: learned", limit=LEARNED_BYTES)
    if hashlib.sha256(data).hexdigest() != recipe.learned.sha256:
        raise InputError(f"{path}: learned: {file} has changed since the recipe was written")
    return data


def write_folder(
    base: Checkpoint, fused: Mapping[str, Any], out: Path, recipe: Path, results: str
) -> None:
    """Write the base's folder with the merged tensors in place of its own.

    Where `results` is a dtype, all floating-point tensors have it, and the configuration says so.
    """
    dtype = results_dtype(results)

    with new_folder(out) as part:
        tensors = {}
        infos = {**base.tensors, **base.rest, **base.buffers}
        for name, tensor in read(base, infos):
            found = fused.get(name, tensor)
            kind = dtype if dtype is not None and found.is_floating_point() else found.dtype
            tensors[infos[name].plain] = found.to(kind).contiguous()
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        share(part / "model.safetensors")
        for name, data in papers(base).items():
            (part / name).write_bytes(data)
        say(part / "config.json", family_in(base).exported(base))
        if dtype is not None:
            say_dtype(part / "config.json", results)
        (part / "recipe.yaml").write_bytes(read_bytes(recipe))


PAPERS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "generation_config.json", "open_clip_config.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files beside a model's weights that belong to it; other files of the folder are ignored."""


def papers(base: Checkpoint) -> dict[str, bytes]:
    """Name -> content of the files beside a model's weights that a copy of the model needs.

    Raises:
        InputError: one is no regular file, or a link out of the model's folder. A link of the
            hub's cache, from a snapshot to a blob of the same model, is followed.
    """
    folder = base.folder.resolve()
    roots = [folder, *([folder.parent.parent] if folder.parent.name == "snapshots" else [])]
    found = {}
    for name in PAPERS:
        file = base.folder / name
        if not os.path.lexists(file):
            continue
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise InputError(
                f"{base.name}: {file}: a link out of its folder, to {os.readlink(file)[:200]}; the"
                " file itself needed"
            )
        found[name] = read_bytes(file, base.name)
    return found


def check_new(out: Path) -> None:
    """Raise InputError if a path exists, including dangling links."""
    if os.path.lexists(out) or not out.name:
        raise InputError(f"{out}: is there already; give a new folder")


def say(file: Path, fields: Mapping[str, Any]) -> None:
    """Set fields of a configuration; a file that says them already stays as it is."""
    config = read_json(file) if fields else {}
    if any(name not in config or config[name] != value for name, value in fields.items()):
        file.write_text(json.dumps({**config, **fields}, indent=2))


def say_dtype(file: Path, dtype: str) -> None:
    """Write the dtype of the tensors into a model's configuration, and into those of its towers."""
    config = read_json(file)
    config.setdefault("dtype" if "torch_dtype" not in config else "torch_dtype", dtype)
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    file.write_text(json.dumps(config, indent=2))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` at the end, or deleted if the block raises.

    Raises:
        InputError: it cannot be written, or something is there already.
    """
    check_new(out)
    part = out.with_name(f".{out.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        out.mkdir()  # fails where somebody has made it meanwhile; a rename would replace a link
        part.rename(out)
    except FileExistsError:
        raise InputError(f"{out}: is there already; give a new folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
