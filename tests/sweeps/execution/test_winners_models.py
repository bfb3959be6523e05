"""Logged models hold the model: `models:/…` loads without this package and gives the row's
accuracy."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
from mlflow import pyfunc
from mlflow.models import Model

from actors.pool.pool import open_pool
from sweeps.execution.winners_models import WinnerModel, model_bytes, model_of
from sweeps.results.comparison import Row
from sweeps.results.export.code import WITHOUT
from sweeps.results.ledger import Entry
from sweeps.results.recipe import load
from sweeps.spec.sweep import MlflowSpec
from sweeps.tracking import mlflow_store
from sweeps.tracking.logged_model import NOT_STORED, NoModel
from sweeps.tracking.tracker import Tracker
from tests.sweeps.results.export.made_sweeps import METHOD, clip_of_image_files, sweep_of, t5

ENTRY = Entry(
    "k1", METHOD, "static", {"scale": 0.5}, "done", "select", metrics={"acc/mean": 0.5},
    n={"x": 2}, trial_s=1.5, peak_bytes=7, started="2026-01-02T03:04:05+00:00",
)  # fmt: skip

LOAD = """
import json, os
import mlflow, pandas
from datasets import load_dataset
mlflow.set_tracking_uri({uri!r})
found = {{}}
for kind, model_id in {models!r}.items():
    model = mlflow.pyfunc.load_model(f"models:/{{model_id}}")
    os.chdir(mlflow.artifacts.download_artifacts(f"models:/{{model_id}}"))
    os.chdir("data/{method}")
    for name, task in json.load(open("tasks.json")).items():
        rows = load_dataset(**task["data"])
        rows = rows.select(task["rows"] or range(len(rows)))
        if "image" in model.metadata.get_input_schema().input_names():
            files = [open(file, "rb").read() for file in rows["image"]]
            table = pandas.DataFrame({{"image": files}})
        else:
            table = pandas.DataFrame({{column: rows[column] for column in task["columns"]}})
        made = model.predict(table, params={{"task": name}})
        values = [format(each, task["format"]) for each in rows[task["label"]]]
        labels = [task["labels"].index(value) for value in values]
        right = sum(c == task["classnames"][at] for c, at in zip(made["class"], labels))
        widths = {{len(scores) for scores in made["scores"]}}
        assert widths == {{len(task["classnames"])}}, widths
        found[f"{{kind}}/{{name}}"] = right / len(rows)
print(json.dumps(found))
"""


def tracked(tmp_path):
    client, experiment = mlflow_store.connect(None, None, tmp_path)
    return Tracker(client, experiment, "s", "id1", {}, patience=0.2)


def test_models_load_without_this_package_and_give_the_rows_accuracies(tmp_path, tiny_pool):
    sent, models, wanted = tracked(tmp_path), {}, {}
    for kind in (clip_of_image_files, t5):
        place = tmp_path / kind.__name__
        (place / "models").mkdir(parents=True)
        path, row = sweep_of(place, kind(place, tiny_pool))
        recipe = load(path)
        pool = open_pool(recipe.base.source, {t: m.source for t, m in recipe.experts.items()})
        entry = replace(ENTRY, trial_key=kind.__name__)
        sent.flush([entry])
        source = WinnerModel(path, pool, "float32", place / "models")
        sent.winner(kind.__name__, entry.trial_key, dict(row.test), {}, path, source=source)
        assert sent.fault is None
        run = sent.client.get_run(sent.run_id(entry.trial_key))
        models[kind.__name__] = run.outputs.model_outputs[0].model_id
        assert f"models:/{models[kind.__name__]}" in run.data.tags["mlflow.note.content"]
        wanted |= {f"{kind.__name__}/{task}": row.test[f"acc/{task}"] for task in pool_tasks(path)}
    program = LOAD.format(uri=f"sqlite:///{tmp_path}/mlflow.db", models=models, method=METHOD)
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT], input=program, cwd=tmp_path, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


def pool_tasks(path):
    """Names of the tasks of a recipe's sweep."""
    folder = path.parent.parent
    return json.loads((folder / "comparison.json").read_text())["tasks"] or ["tones"]


def test_a_model_predicts_the_class_of_a_task_and_its_signature_says_how(tmp_path, tiny_pool):
    path, _ = sweep_of(tmp_path, clip_of_image_files(tmp_path, tiny_pool))
    pool = open_pool(**tiny_pool.spec()["pool"])
    folder = WinnerModel(path, pool, "float32", tmp_path / "models").package("r" * 32, "m-1")
    about = Model.load(str(folder))
    assert about.signature.inputs.to_dict() == [
        {"type": "binary", "name": "image", "required": True}
    ]
    assert about.signature.outputs.input_names() == ["class", "scores"]
    assert about.signature.params.to_dict()[0]["default"] == "tones"
    assert (folder / "data" / METHOD / "heads.safetensors").exists()
    assert about.model_size_bytes > model_bytes(pool)
    model = pyfunc.load_model(str(folder))
    file = next((tmp_path / "tones").rglob("*.png"))
    table = pandas.DataFrame({"image": [file.read_bytes()]})
    for params in (None, {}, {"task": "tones"}):
        assert model.predict(table, params=params)["class"][0] in ("dark", "grey", "light")
    with pytest.raises(ValueError, match=r"task: 'x': one of tones allowed"):
        model.predict(table, params={"task": "x"})


def test_a_model_that_is_too_large_or_none_is_a_reason(tmp_path, tiny_pool):
    pool = open_pool(**tiny_pool.spec()["pool"])

    def reason(method, most):
        spec = SimpleNamespace(mlflow=MlflowSpec(max_model_mb=most), references={"mtl": "a/b"})
        row = Row(method, "static", {})
        prepared = SimpleNamespace(pool=pool, spec=spec)
        return model_of(row, tmp_path / "x.yaml", prepared, tmp_path)

    size = model_bytes(pool)
    assert reason("ties", size / 1e6 - 1e-6).endswith("allows")
    assert "mlflow.max_model_mb: 0 allows" in reason("ties", 0)
    assert reason("pretrained", 100) == "the base itself"
    assert reason("mtl", 100) == "a finished model: a/b"
    assert reason("ensemble", 100) == "no single model (logits)"
    assert reason("dawin", 100) == "no single model (model per sample)"


def test_a_run_without_a_model_has_the_reason_and_no_empty_model(tmp_path):
    sent = tracked(tmp_path)
    sent.flush([ENTRY, replace(ENTRY, trial_key="k2")])

    class Gone:
        def export(self):
            raise NoModel("data are gone")

    sent.winner("a", "k1", {"acc/mean": 0.5}, {}, None, source="350 MB, more than allowed")
    sent.winner("b", "k2", {"acc/mean": 0.5}, {}, None, source=Gone())
    runs = [sent.client.get_run(sent.run_id(key)) for key in ("k1", "k2")]
    assert [run.data.tags[NOT_STORED] for run in runs] == [
        "350 MB, more than allowed", "data are gone",
    ]  # fmt: skip
    assert sent.client.search_logged_models([sent.experiment]) == []
    assert all(run.data.metrics["test/acc/mean"] == 0.5 for run in runs)
