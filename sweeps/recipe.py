"""Recipes: what rebuilds a row of the comparison as a model. Coefficients are kept, not weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from actors.atomic import replacing
from actors.checkpoints import Checkpoint, content_hash, read
from actors.documents import dump_yaml, read_json
from actors.experts import Recipe as What
from actors.filed import filed_vectors
from actors.pool import Pool, open_pool
from actors.recipes import RESULTS, learned_beta, merged, of_task, rebuilt, results_dtype
from actors.segments import clip_segments
from actors.statisticfile import opened, place
from fusion.errors import InputError
from fusion.registry import METHODS, Fitted, Informed, LogitSpace, PerTask, Resident, one_a_sample
from sweeps.ledger import write_text


@dataclass(frozen=True)
class Model:
    """One source checkpoint, and what it must hash to."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """A fused model: its method, parameters and ingredients."""

    method: str
    params: Mapping[str, Any]
    base: Model
    experts: Mapping[str, Model]
    code: str
    """Version of this package."""
    sweep: str
    selected: Mapping[str, Any] = field(default_factory=dict)
    """Split, metric and value it was chosen by."""
    learned: Model | None = None
    """Of a method that learns: its gate or coding file, beside the recipe."""
    statistics: Sequence[str] = ()
    """Of a method that merges by statistics of data: each expert's key in the cache."""
    result_dtype: str = "base"
    """What the model is rounded to: each tensor to its dtype in the base, or to float32."""


def identify(checkpoint: Checkpoint) -> Model:
    """Source and content hash of a checkpoint; a folder's source is made absolute."""
    local = Path(checkpoint.source).is_dir()
    source = str(checkpoint.folder.resolve()) if local else checkpoint.source
    return Model(source, content_hash(checkpoint))


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
    """`<folder>/<row>.yaml`, written whole or not at all; what was learned is copied beside it."""
    content = {
        "method": row,
        "params": dict(params),
        "base": vars(identify(pool.base)),
        "experts": {task: vars(identify(expert)) for task, expert in pool.experts.items()},
        "code": version("fusion-sweeps"),
        "sweep": sweep,
        "selected": dict(selected),
        "result_dtype": result_dtype,
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


def load(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        InputError: no such file, not YAML, fields missing or unknown.
    """
    try:
        content = yaml.safe_load(path.read_text())
        base = Model(**content.pop("base"))
        experts = {task: Model(**model) for task, model in content.pop("experts").items()}
        learned = Model(**content.pop("learned")) if content.get("learned") else None
        found = Recipe(base=base, experts=experts, learned=learned, **content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a recipe as `sweeps run` writes it ({reason})") from error
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
    if out.exists():
        raise InputError(f"{out}: is there already; give a new folder")
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
    what = What(recipe.method, {**recipe.params, **known_statistics(recipe, pool, path)}, data)
    if isinstance(METHODS.get(recipe.method), PerTask):
        vectors = replace(filed_vectors(pool), results=results_dtype(recipe.result_dtype))
        with new_folder(out) as part:
            for task in pool.tasks:
                fused = merged(vectors, of_task(what, task))
                write_folder(pool.base, fused, part / task, path, recipe.result_dtype)
        return
    fused = rebuilt(pool, what, recipe.result_dtype)
    fused |= tempered(pool.base, learned_beta(what))
    write_folder(pool.base, fused, out, path, recipe.result_dtype)


def known_statistics(recipe: Recipe, pool: Pool, path: Path) -> dict[str, Any]:
    """The statistics that a recipe names, as a parameter of its method.

    Raises:
        InputError: this machine's cache does not have them.
    """
    if not isinstance(METHODS.get(recipe.method), Informed):
        return {}
    segments = range(len(clip_segments(pool.base)))
    files = [place(key, at) for key in recipe.statistics for at in segments]
    gone = next((file for file in files if not file.exists()), None)
    if gone is not None or not files:
        raise InputError(
            f"{path}: statistics: {gone or 'none named'}: not in this machine's cache; they are of"
            f" images, so run the sweep {recipe.sweep!r} here (--resume), then export"
        )
    return {"statistics": opened(recipe.statistics, segments)}


def tempered(base: Checkpoint, beta: float) -> dict[str, Any]:
    """The base's logit scale with an inverse temperature in it: exp(s + ln β) = β·exp(s)."""
    if beta == 1.0 or "logit_scale" not in base.rest:
        return {}
    return {name: scale + math.log(beta) for name, scale in read(base, ["logit_scale"])}


def check_single(recipe: Recipe, path: Path) -> None:
    """Raise InputError where a recipe makes no single model."""
    row = METHODS.get(recipe.method)
    if isinstance(row, LogitSpace | Fitted) or recipe.method == "experts":
        raise InputError(
            f"{path}: {recipe.method}: fuses logits; there is no single model to build"
        )
    if one_a_sample(row):
        what = "routers are" if isinstance(row, Resident) else "gate is"
        kept = f"; its {what} {path.parent / recipe.learned.source}" if recipe.learned else ""
        raise InputError(
            f"{path}: {recipe.method}: one model a sample; there is no single model to build{kept}"
        )


def learned_data(recipe: Recipe, path: Path) -> bytes | None:
    """What was learned, where the recipe names it.

    Raises:
        InputError: the file is gone or has changed.
    """
    if recipe.learned is None:
        return None
    file = path.parent / recipe.learned.source
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: learned: {file}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != recipe.learned.sha256:
        raise InputError(f"{path}: learned: {file} has changed since the recipe was written")
    return data


def write_folder(
    base: Checkpoint, fused: Mapping[str, Any], out: Path, recipe: Path, results: str
) -> None:
    """The base's folder with the fused tensors in place of its own, under their names there.

    Where `results` is a dtype, all floating-point tensors have it, and the configuration says so.
    """
    from safetensors.torch import save_file

    dtype = results_dtype(results)

    with new_folder(out) as part:
        tensors = {}
        infos = {**base.tensors, **base.rest, **base.buffers}
        for name, tensor in read(base, infos):
            found = fused.get(name, tensor)
            kind = dtype if dtype is not None and found.is_floating_point() else found.dtype
            tensors[infos[name].plain] = found.to(kind).contiguous()
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        for file in base.folder.iterdir():
            if file.suffix in {".json", ".txt"} and not file.name.endswith(".index.json"):
                shutil.copy(file, part / file.name)
        if dtype is not None:
            say_dtype(part / "config.json", results)
        shutil.copy(recipe, part / "recipe.yaml")


def say_dtype(file: Path, dtype: str) -> None:
    """Write into a model's configuration, and those of its towers, what its tensors are."""
    config = read_json(file)
    config.setdefault("dtype" if "torch_dtype" not in config else "torch_dtype", dtype)
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    file.write_text(json.dumps(config, indent=2))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which is at `out` when the block is left, or nowhere where it raises.

    Raises:
        InputError: it cannot be written.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
