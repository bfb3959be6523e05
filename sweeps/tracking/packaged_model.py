"""A merged model as an MLflow model: a folder that `mlflow.pyfunc.load_model` loads and that
predicts, without this package.

It holds an exported folder (weights, processor or tokenizer, `tasks.json`, heads), a module that
loads it with `transformers`, a signature, and the packages it needs.
"""

from __future__ import annotations

import hashlib
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from actors.families.usage import Usage, predictor_of
from actors.files.documents import read_json
from sweeps.results.export.model_card import smallest
from sweeps.results.export.task_files import TASKS

NEEDS = ("mlflow", "torch", "transformers", "safetensors", "pandas", "pillow")
"""Packages of the module; versions are those that are installed here."""


def package(export: Path, usage: Usage, dtype: str, run_id: str, model_id: str) -> Path:
    """Write an MLflow model beside an exported folder, and return its folder.

    Args:
        export: the exported folder; it has tasks.
        usage: of its model family.
        dtype: what the model computes in; a name of `torch`.
        run_id: the run that the model is a result of.
        model_id: the logged model.
    """
    tasks = read_json(export / TASKS)
    default = str(smallest(tasks))
    code = predictor_of(usage, default, dtype)
    # Two models in one process: a module's name is that of its text.
    name = f"merged_model_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    out = export.with_name(f"{export.name}.mlflow")
    module = export.with_name(f"{name}.py")
    module.write_text(code, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")
        pyfunc.save_model(
            out,
            loader_module=name,
            data_path=str(export),
            code_paths=[str(module)],
            signature=signature_of(tasks, usage, default),
            pip_requirements=[f"{each}=={version(each).partition('+')[0]}" for each in NEEDS],
            mlflow_model=Model(artifact_path=None, run_id=run_id, model_id=model_id),
        )
    return out


def signature_of(tasks: dict[str, Any], usage: Usage, default: str) -> ModelSignature:
    """The model's table of inputs, its output, and its parameter `task`.

    A column that only some tasks read is optional.
    """
    files = usage.column
    read = [[files] if files else list(about["columns"]) for about in tasks.values()]
    names = dict.fromkeys(name for columns in read for name in columns)
    kind = DataType.binary if files else DataType.string
    return ModelSignature(
        Schema([ColSpec(kind, name, all(name in each for each in read)) for name in names]),
        Schema([ColSpec(DataType.string, "class"), ColSpec(Array(DataType.double), "scores")]),
        ParamSchema([ParamSpec("task", DataType.string, default)]),
    )
