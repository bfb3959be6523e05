"""Recipe files: what is needed to rebuild a row of the comparison as a model; no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from safetensors.torch import load as opened_tensors
from safetensors.torch import save
from torch import Tensor

from actors.artifacts.recipe import REFERENCES
from actors.artifacts.statistics_file import opened, place
from actors.checkpoints.checkpoint import Checkpoint, content_hash
from actors.experts.recipe import RESULTS
from actors.families.registry import family_in
from actors.files.atomic import replacing
from actors.files.documents import checked, dump_yaml, read_bytes, read_yaml
from actors.files.paths import Plain, inside
from actors.pool.pool import Pool
from fusion.errors import InputError, reading, unknown
from fusion.kinds import NO_SINGLE_MODEL
from fusion.outside_methods import ORIGINS
from fusion.registry import METHODS
from sweeps.results import comparison_file
from sweeps.results.ledger import write_text

LEARNED_BYTES = 1 << 33
"""Of what was learned, at most: routers of a large tower have some GB."""


BATCH_NORM = ".batch_norm.safetensors"
"""End of the name of a file of running statistics."""

EXACT: Mapping[str, str] = {"precision": "fp32", "report_precision": "fp32"}
"""Precisions of a recipe whose products were all float32."""


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
    delta_dtype: Literal["float32", "bfloat16"] = "float32"
    """What task vectors were rounded to."""
    precision: str = "fp32"
    """Precision of products of activations where its method learned and was chosen."""
    report_precision: str = "fp32"
    """The same where it was measured for the report."""
    batch_norm: Model | None = None
    """Of models with batch norm: the file of the model's running statistics, beside the recipe."""
    module: str | None = None
    """Of a method of another package: the module that has it."""
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
    precisions: Mapping[str, str] = EXACT,
    running: Mapping[str, Tensor] = MappingProxyType({}),
) -> Path:
    """Write `<folder>/<row>.yaml` atomically; a learned file is copied beside it.

    `running`: running statistics of the model's batch norm, written beside it too.
    """
    content = {
        "method": row,
        "params": dict(params),
        "base": vars(identify(pool.base)),
        "experts": {task: vars(identify(expert)) for task, expert in pool.experts.items()},
        "code": version("fusion-sweeps"),
        "sweep": sweep,
        "selected": dict(selected),
        "result_dtype": result_dtype,
        "delta_dtype": pool.deltas,
        **precisions,
        **beside(pool.base),
    }
    if learned is not None:
        data = learned.read_bytes()
        with replacing(folder / f"{row}.safetensors") as part:
            part.write_bytes(data)
        content["learned"] = vars(Model(f"{row}.safetensors", sha256(data)))
    if running:
        data = save(dict(running))
        with replacing(folder / f"{row}{BATCH_NORM}") as part:
            part.write_bytes(data)
        content["batch_norm"] = vars(Model(f"{row}{BATCH_NORM}", sha256(data)))
    if statistics:
        content["statistics"] = list(statistics)
    if row in ORIGINS:
        content["module"] = ORIGINS[row]
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
    if found.method not in METHODS and found.module is not None:
        raise InputError(
            f"{path}: method: {found.method!r} is of the module {found.module!r}, which is not"
            f" loaded: give --import {found.module} in its folder, or install its package"
        )
    if found.method not in METHODS and found.method not in REFERENCES:
        raise InputError(f"{path}: method: {unknown('method', found.method, METHODS)}")
    if found.result_dtype not in RESULTS:
        allowed = " or ".join(RESULTS)
        raise InputError(f"{path}: result_dtype: {found.result_dtype!r}; {allowed} allowed")
    return found


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
            f" data, so run the sweep {recipe.sweep!r} here (--resume), then export"
        )
    return opened(recipe.statistics, segments)


def check_single(recipe: RecipeFile, path: Path) -> None:
    """Raise InputError if a recipe's method makes no single model; it names rows that do."""
    row = METHODS.get(recipe.method)
    if recipe.method == "experts" or (row is not None and row.output == "logits"):
        raise InputError(
            f"{path}: {recipe.method}: fuses logits; there is no single model to build"
            f"{instead(path)}"
        )
    if row is not None and row.output == "model_per_sample":
        what = "routers are" if "mlp_blocks" in row.requires else "gate is"
        kept = f"; its {what} {learned_file(recipe.learned, path)}" if recipe.learned else ""
        raise InputError(
            f"{path}: {recipe.method}: one model a sample; there is no single model to build{kept}"
            f"{instead(path)}"
        )


def instead(path: Path) -> str:
    """The recipes beside one that can be exported, as the end of a message; the best row first."""
    try:
        found = comparison_file.read(path.parent.parent)
    except InputError:
        return ""
    known = {row.method: row for row in found.rows if row.recipe and row.method in METHODS}
    ranked = sorted(known.values(), key=found.order, reverse=True)
    single = [
        row.method
        for row in ranked
        if METHODS[row.method].output not in NO_SINGLE_MODEL
        and inside(path.parent, f"{row.method}.yaml", str(path)).exists()
    ]
    if not single:
        return ""
    return f"; can be exported, best first: {', '.join(f'{name}.yaml' for name in single)}"


def learned_file(learned: Model, path: Path) -> Path:
    """Path of the learned file: beside the recipe."""
    return inside(path.parent, learned.source, f"{path}: learned.source")


def learned_data(recipe: RecipeFile, path: Path) -> bytes | None:
    """Content of the learned file, if the recipe names one.

    Raises:
        InputError: the file is gone or has changed.
    """
    return None if recipe.learned is None else content_of(recipe.learned, path, "learned")


def known_running(recipe: RecipeFile, path: Path) -> dict[str, Tensor] | None:
    """The running statistics beside a recipe; None: it names none.

    Raises:
        InputError: the file is gone, has changed, or is damaged.
    """
    if recipe.batch_norm is None:
        return None
    with reading(f"{path}: batch_norm"):
        return dict(opened_tensors(content_of(recipe.batch_norm, path, "batch_norm")))


def content_of(model: Model, path: Path, field: str) -> bytes:
    """Content of a file beside a recipe.

    Raises:
        InputError: it is gone or has changed.
    """
    file = inside(path.parent, model.source, f"{path}: {field}.source")
    data = read_bytes(file, f"{path}: {field}", limit=LEARNED_BYTES)
    if sha256(data) != model.sha256:
        raise InputError(f"{path}: {field}: {file} has changed since the recipe was written")
    return data


def sha256(data: bytes) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(data).hexdigest()
