"""Merge model folders or hub ids into a new model folder, without a sweep and without Ray.

The folder is what an export of a sweep is: weights, configuration, tokenizer and processor files,
the recipe and a model card beside them.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.experts.recipe import RESULTS
from actors.files.documents import dump_yaml
from actors.pool.pool import open_pool
from fusion.errors import InputError
from fusion.merge_models import of_weights
from fusion.outside_methods import ORIGINS
from sweeps.results import recipe
from sweeps.results.export.from_recipe import rebuild
from sweeps.results.export.model_card import CARD
from sweeps.results.export.model_folder import check_new
from sweeps.results.export.sweep_facts import SweepFacts


def merge(
    method: str,
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    /,
    *,
    result_dtype: str = "base",
    **params: Any,
) -> Path:
    """Merge experts of one base into a new model folder that `transformers` loads.

    Experts stay in their files: the memory needed is that of the base, of the result, and of one
    tensor's task vectors. A method that makes one model a task writes one folder a task.

    Args:
        method: a name of `fusion.METHODS` that needs weights alone.
        base: a folder or hub id.
        experts: name -> folder or hub id of a fine-tuned model, or of a LoRA adapter of the base.
        out: a new folder; it is there whole, or not at all.
        result_dtype: `base` (each tensor's dtype in the base) or `float32`.
        params: hyper-parameters, checked as in sweep files.

    Returns:
        The new folder.

    Raises:
        InputError: an unknown method or one that needs more than weights, wrong hyper-parameters,
            models that do not fit each other, `out` is there already.
    """
    of_weights(method, params)
    if result_dtype not in RESULTS:
        allowed = " or ".join(RESULTS)
        raise InputError(f"result_dtype: {result_dtype!r}; {allowed} allowed")
    place, sources = Path(out), {name: os.fspath(each) for name, each in experts.items()}
    check_new(place)
    pool = open_pool(os.fspath(base), sources)
    command = command_of(method, os.fspath(base), sources, result_dtype, params)
    with tempfile.TemporaryDirectory(prefix="fusion-sweeps-") as folder:
        file = recipe.write(Path(folder), method, pool, params, "", {}, result_dtype=result_dtype)
        rebuild(recipe.load(file), file, pool, place, SweepFacts(), command)
    return place


def command_of(
    method: str, base: str, experts: Mapping[str, str], dtype: str, params: Mapping[str, Any]
) -> str:
    """The command line that makes a merge again, for its card.

    >>> command_of("ties", "base", {"a": "x", "b": "org/y"}, "base", {"density": 0.2})
    'sweeps merge ties base a=x b=org/y -o OUT_DIR --set density=0.2'
    """
    words = ["sweeps", "merge", method, base, *(f"{name}={each}" for name, each in experts.items())]
    words += ["-o", CARD]
    for name, value in params.items():
        text = dump_yaml(value, default_flow_style=True, width=10_000).removesuffix("...\n")
        words += ["--set", f"{name}={text.strip()}"]
    words += [] if dtype == "base" else ["--result-dtype", dtype]
    words += ["--import", ORIGINS[method]] if method in ORIGINS else []
    return shlex.join(words)
