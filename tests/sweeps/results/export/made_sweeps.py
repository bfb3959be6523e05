"""Sweeps of one method, evaluated in one process: their folders, recipes and rows."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from actors.artifacts.recipe import Recipe as What
from actors.data.task import Splits, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.pool.pool import Pool, open_pool
from sweeps.results import comparison_file, recipe
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.folder import claim
from sweeps.spec.sweep import SweepSpec, dump, spec_hash, validate
from tests.actors.checkpoints.adapter_folders import write_adapter
from tests.actors.families.t5.models import write_pool
from tests.tiny_bert import make_models, write_texts
from tests.tiny_pool import TASKS, draw

METHOD, PARAMS = "task_arithmetic", {"scale": 0.5}


def sweep_of(root: Path, content: dict, row: str = METHOD) -> tuple[Path, Row]:
    """The folder of a sweep of one method, evaluated in this process; its recipe and row."""
    spec = validate({"name": "made", "methods": {METHOD: PARAMS}, **content}, "spec")
    pool = open_pool(spec.pool.base, spec.pool.experts)
    evaluation = evaluated(spec, pool, root)
    folder = root / "outputs" / "made"
    claim(folder, spec_hash(spec), dump(spec))
    params = PARAMS if row == METHOD else {}
    path = recipe.write(folder / "recipes", row, pool, params, "made", {})
    found = Row(row, "static", params, test=evaluation.metrics(), recipe=f"recipes/{row}.yaml")
    header = Header("made", "x", "val", command="sweeps run made.yaml")
    comparison = compare(header, [found], {row: evaluation.samples("acc")})
    comparison_file.write(comparison, folder)
    return path, comparison.rows[0]


def evaluated(spec: SweepSpec, pool: Pool, root: Path):
    given = pool.family.own_heads(pool.base, pool.experts)
    kind = pool.family.inputs(pool.base).kind
    tasks = {
        name: open_task(replace(task.source(name), head=given.get(name)), kind)
        for name, task in spec.tasks.items()
    }
    splits = Splits(**spec.splits.model_dump())
    data = prepare_data(pool.base, tasks, splits, ["report"], cache_dir(), select_spelled=True)
    experts = local_experts(pool, data, EmbeddingCache(root / "embeddings", {}))
    return experts.evaluate(What(METHOD, PARAMS), "report")


def clip(root: Path, tiny_pool) -> dict:
    return {key: tiny_pool.spec()[key] for key in ("pool", "tasks")}


def clip_of_image_files(root: Path, tiny_pool) -> dict:
    """Reported on a part of the split `train`, whose images lie in folders of classes."""
    import numpy as np

    draws = np.random.default_rng(7)
    for label, name in enumerate(TASKS["tones"]):
        (root / "tones" / "train" / name).mkdir(parents=True)
        for at in range(10):
            picture = Image.fromarray(draw("tones", label, draws))
            picture.convert("L" if at % 2 else "RGB").save(
                root / "tones" / "train" / name / f"{at}.png"
            )
    pool = tiny_pool.spec()["pool"]
    split = {"select": "val", "report": "val", "val_fraction": 0.5}
    return {"pool": pool, "tasks": {"tones": {"dataset": str(root / "tones")}}, "splits": split}


def clip_of_adapters(root: Path, tiny_pool) -> dict:
    base = tiny_pool.spec()["pool"]["base"]
    names = enumerate(TASKS)
    experts = {name: str(write_adapter(root / name, base, seed=seed)) for seed, name in names}
    return {**clip(root, tiny_pool), "pool": {"base": base, "experts": experts}}


def bert_classifier(root: Path, tiny_pool) -> dict:
    classes = ("good", "bad", "fine")
    made = make_models(root)["bert"]
    named = dict(enumerate(classes))
    runs = {f"run_{at}": str(made.write(root / f"run_{at}", at, id2label=named)) for at in (1, 2)}
    data = str(write_texts(root / "data" / "film", classes, 1, pairs=True))
    task = {"dataset": data, "text": ["text", "second"]}
    base = str(made.write(root / "whole", id2label=named))
    return {"pool": {"base": base, "experts": runs}, "tasks": {"film": task}}


def encoder(root: Path, kind: str) -> dict:
    made, names = make_models(root)[kind], {"film": 3, "play": 2}
    experts = {
        name: str(made.write(root / name, at + 3, classes=count))
        for at, (name, count) in enumerate(names.items())
    }
    words = ("good", "bad", "fine")
    tasks = {
        name: {"dataset": str(write_texts(root / "data" / name, words[:count], count))}
        for name, count in names.items()
    }
    base = str(made.write(root / "encoder", encoder=True))
    return {"pool": {"base": base, "experts": experts}, "tasks": tasks}


def bert_encoder(root: Path, tiny_pool) -> dict:
    return encoder(root, "bert")


def roberta_encoder(root: Path, tiny_pool) -> dict:
    return encoder(root, "roberta")


def t5(root: Path, tiny_pool) -> dict:
    write_pool(root)
    names = ("colour", "heat")
    tasks = {
        name: {"dataset": str(root / "data" / name), "template": "{text} is the"} for name in names
    }
    experts = {name: str(root / name) for name in names}
    return {"pool": {"base": str(root / "base"), "experts": experts}, "tasks": tasks}
