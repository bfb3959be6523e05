"""Every exported kind gives its row's accuracy by the card's code, with transformers alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from actors.artifacts.recipe import Recipe as What
from actors.data.task import Splits, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.pool.pool import Pool, open_pool
from fusion.errors import InputError
from sweeps.cli.main import app
from sweeps.results import comparison_file, recipe
from sweeps.results.comparison import Header, Row, compare
from sweeps.results.export.code import check_export, code_in, run_code
from sweeps.results.export.from_recipe import export
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


KINDS = (clip, clip_of_image_files, clip_of_adapters, bert_classifier, bert_encoder,
         roberta_encoder, t5)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_code_of_the_card_gives_the_rows_accuracy(kind, tmp_path, tiny_pool):
    path, row = sweep_of(tmp_path, kind(tmp_path, tiny_pool))
    assert export(path, tmp_path / "out") is None
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    code, name = code_in(tmp_path / "out")
    codes = ["found = []\n"]
    for task, about in tasks.items():
        assert about["accuracy"] == row.test[f"acc/{task}"]
        assert tuple(about["accuracy_ci95"]) == row.test_ci95[f"acc/{task}"]
        of_task = code.replace(f"name, dtype = {name!r}", f"name, dtype = {task!r}")
        codes.append(of_task.replace("print(right", "found.append(right"))
    codes.append("print(sum(found))\n")
    wanted = sum(about["accuracy"] for about in tasks.values())
    assert run_code(tmp_path / "out", "".join(codes)) == wanted
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    measured = {each.dataset_name: each.metric_value for each in card.data.eval_results}
    assert measured == {task: row.test[f"acc/{task}"] for task in tasks}
    assert yaml.safe_dump(PARAMS).strip() in card.text
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "out").glob("*.*")}
    assert modes == {path.stat().st_mode & 0o777}


def test_a_check_compares_with_the_row(tmp_path, tiny_pool):
    content = clip(tmp_path, tiny_pool)
    del content["tasks"]["lines"], content["tasks"]["blobs"]
    path, _ = sweep_of(tmp_path, content)
    done = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "out"), "--check"])
    assert done.exit_code == 0, done.output
    assert "with transformers alone, equal to the row" in done.output.replace("\n", " ")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    tasks["tones"]["accuracy"] += 2 / 60
    (tmp_path / "out" / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(InputError, match=r"by the card's code, .* in the row: 2 of 60 rows differ"):
        check_export(tmp_path / "out")
    card = "```python\nname, dtype = 'tones', torch.float32\n```\n"
    (tmp_path / "out" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"README\.md: its code fails: NameError"):
        check_export(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("no code")
    with pytest.raises(InputError, match=r"README\.md: no code that loads the model"):
        check_export(tmp_path / "out")


def test_code_of_a_card_cannot_import_this_package(tmp_path):
    with pytest.raises(InputError, match="ModuleNotFoundError: import of fusion halted"):
        run_code(tmp_path, "import fusion")


def test_a_row_that_is_no_single_model_names_rows_that_are(tmp_path, tiny_pool):
    path, _ = sweep_of(tmp_path, clip(tmp_path, tiny_pool))
    pool = open_pool(**{k: tiny_pool.spec()["pool"][k] for k in ("base", "experts")})
    other = recipe.write(path.parent, "ensemble", pool, {}, "made", {})
    with pytest.raises(InputError, match=r"can be exported, best first: task_arithmetic\.yaml$"):
        export(other, tmp_path / "out")


def test_without_its_sweep_a_recipe_is_exported_without_tasks(tmp_path, tiny_pool):
    pool = open_pool(**{k: tiny_pool.spec()["pool"][k] for k in ("base", "experts")})
    path = recipe.write(tmp_path / "alone", METHOD, pool, PARAMS, "made", {})
    assert "no tasks, heads and accuracies" in str(export(path, tmp_path / "out"))
    assert not (tmp_path / "out" / "tasks.json").exists()
    assert "```python" not in (tmp_path / "out" / "README.md").read_text()
