"""`sweeps train`: a base and experts from a file; nothing trained twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from actors.checkpoints.checkpoint import content_hash
from actors.data.images.corruptions import corrupt
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.prepare_data import prepare_data
from actors.families.registry import family_in, inspect, training_of
from actors.files.hashes import hash_files
from fusion.errors import InputError
from sweeps.planning.shift_data import open_shifts, shift_rows
from sweeps.train import spec as trainspec
from sweeps.train import trial as traintrial
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import read_results
from sweeps.train.run import contexts, train
from sweeps.train.run_trials import TrialRecorder
from sweeps.train.shift_scores import mark


def spec(tiny_pool, out, **changes) -> dict:
    return {
        "name": "t",
        "out": str(out),
        "pretrain": {"width": 32, "layers": 1, "heads": 2, "mlp": 32, "patch": 16,
                     "text_width": 32, "text_layers": 1, "projection": 16, "steps": 4},
        "tasks": {t: {"dataset": str(tiny_pool.root / "data" / t)} for t in ("lines", "tones")},
        "finetune": {"epochs": 2, "batch_size": 16, "learning_rate": {"grid": [1e-3, 2e-3]}},
    } | changes  # fmt: skip


def load(content, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return trainspec.load(path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_is_trained_once_and_can_be_swept(tiny_pool, tmp_path):
    from rich.console import Console
    from transformers import CLIPModel, CLIPVisionModel

    out, console = tmp_path / "pool", Console(file=sys.stderr)
    assert train(load(spec(tiny_pool, out), tmp_path), console) == []
    CLIPModel.from_pretrained(out / "base")
    results = [json.loads(path.read_text()) for path in (out / "trained").glob("*.json")]
    assert len(results) == 4
    for task in ("lines", "tones"):
        CLIPVisionModel.from_pretrained(out / "experts" / task)
    pool = yaml.safe_load((out / "pool.yaml").read_text())["pool"]
    assert set(pool["experts"]) == {"lines", "tones"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert len(before) == 3  # base and two experts: the rest was deleted
    assert train(load(spec(tiny_pool, out), tmp_path), console) == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": "somewhere"}, "exactly one of base and pretrain needed"),
        ({"finetune": {"epoch": 3}}, "unknown parameter 'epoch'; did you mean 'epochs'?"),
        ({"finetune": {"epochs": "many"}}, "finetune.epochs: 'many'"),
        ({"finetune": {"epochs": {"uniform": [1, 2]}}}, "finetune.trials: not given"),
        ({"pretrain": {"widht": 3}}, "unknown parameter 'widht'; did you mean 'width'?"),
        ({"tasks": {}}, "tasks"),
        ({"outs": 1}, "unknown field 'outs'; did you mean 'out'?"),
        ({"keep": 0}, "keep: 0: best, all or an integer of at least 1 allowed"),
        ({"keep": "some"}, "keep: 'some': best, all or an integer of at least 1 allowed"),
        ({"finetune": {"scheduler": "pb"}}, "scheduler: 'pb': null, 'asha' or 'pbt' allowed"),
        ({"finetune": {"searcher": "tpe"}}, "finetune.searcher: 'tpe': nothing is sampled"),
        ({"finetune": {"searcher": "hyper"}}, "unknown searcher 'hyper'"),
        ({"finetune": {"frozen_batchnorm": True}}, "a CLIP ViT has no batch norm; false allowed"),
        ({"finetune": {"frozen_batchnorm": {"grid": [False, True]}}}, "no batch norm"),
        ({"finetune": {"mixup": -1}}, "finetune.mixup: -1: float >= 0 allowed"),
        ({"finetune": {"augmentation": "crops"}}, "one of 'none', 'crop', 'flip'"),
        ({"finetune": {"start": "linear-probe"}}, "unknown parameter 'start'"),
        ({"finetune": {"state": "x"}}, "unknown parameter 'state'"),
        ({"pretrain": {"seed": 3}}, "unknown parameter 'seed'"),
        ({"shifts": {"x": {}}}, "shifts.x.corruption: None: exactly one of corruption and data"),
        ({"shifts": {"x": {"corruption": "fog"}}}, "shifts.x.corruption: 'fog': unknown corrupt"),
        ({"shifts": {"x": {"corruption": "contrast", "severity": 6}}}, "severity: 6: 1, 2, 3, 4"),
        ({"shifts": {"x": {"dataset": "d"}}}, "shifts.x.task: not given: one of lines, tones"),
        ({"shifts": {"x": {"dataset": "d", "task": "dots"}}}, "shifts.x.task: 'dots': unknown"),
    ],
)
def test_a_training_file_that_will_not_do(changes, expected, tiny_pool, tmp_path):
    with pytest.raises(InputError) as caught:
        load(spec(tiny_pool, tmp_path / "pool", **changes), tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def context(tiny_pool, tmp_path) -> FineTuningContext:
    """One task, as trials find it."""
    content = spec(tiny_pool, tmp_path / "out", base=str(tiny_pool.root / "base"), keep=2)
    del content["pretrain"], content["tasks"]["tones"]
    loaded = load(content, tmp_path)
    task = {"lines": open_task(TaskSource("lines", loaded.tasks["lines"].dataset))}
    base, splits = inspect(loaded.base, "base"), Splits()
    data = prepare_data(base, task, splits, ("fit", "select", "report"), tmp_path / "cache")
    starts = {"lines": base}
    about, training = contexts(loaded, starts, task, splits), training_of(base)
    return FineTuningContext(loaded, base, starts, data, about, tmp_path / "out", training)


def config(key, **params) -> dict:
    params = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.9} | params
    return {"task": "lines", "trial_key": key, "seed": 2**32 - 1, "params": params}


def trial(context, monkeypatch, config, halved=True, stop=None) -> list[dict]:
    """What a trial reports; at rung `stop` it is ended, as Tune ends one."""
    reports = []

    def report(result):
        reports.append(result)
        if result["rung"] == stop:
            raise SystemExit

    monkeypatch.setattr(traintrial.tune, "report", report)
    given = (context.folders, context.data, context.contexts, context.out, "cpu", halved)
    try:
        traintrial.fine_tune_trial(config, *given)
    except SystemExit:
        assert stop is not None
    return reports


def test_a_trial_reports_on_the_way_and_goes_on_where_it_was(context, monkeypatch):
    whole = trial(context, monkeypatch, config("one"))
    assert [(each["rung"], each["final"]) for each in whole] == [(1, False), (3, False), (9, True)]
    assert trial(context, monkeypatch, config("two"), stop=3) == whole[:2]
    assert (context.out / "trained/two/state.pt").exists()
    again = trial(context, monkeypatch, config("two"))
    assert again == whole  # the rungs that were reported are reported again, from the file
    one, two = read_results(context.out, "lines")
    assert [each["kind"] for each in one.made] == ["expert", "ema"]
    assert one.made == two.made
    assert len({each["sha256"] for each in one.made}) == 2
    assert one.rungs == {"1": whole[0]["select"], "3": whole[1]["select"]}
    assert one.seed == (2**32 - 1) % 2**31
    assert not (context.out / "trained/two/state.pt").exists()
    assert len(trial(context, monkeypatch, config("three"), halved=False)) == 1
    trial(context, monkeypatch, config("four", seed=5), halved=False)
    results = {each.key: each for each in read_results(context.out, "lines")}
    assert results["three"].made == one.made
    assert results["four"].seed == 5
    assert results["four"].made != one.made


def test_a_stopped_trial_is_recorded_and_leaves_nothing(context, monkeypatch):
    lines = []
    progress = SimpleNamespace(advance=lambda *_, note="": lines.append(note))
    (params,) = [{"epochs": 2.0, "batch_size": 16, "learning_rate": 1e-3}]
    what = {**config("k"), "params": params}
    key = traintrial_key(context, params)
    what["trial_key"] = key
    last = trial(context, monkeypatch, what, stop=1)[-1]
    ended = SimpleNamespace(config=what, last_result=last)
    TrialRecorder(context, progress).on_trial_complete(0, [], ended)
    (result,) = read_results(context.out, "lines")
    assert (result.key, result.stopped, result.report) == (key, 1, None)
    assert result.select == last["select"]
    assert lines == [f"lines: {last['select']:.4f}"]
    assert [each.key for each in context.usable("lines")] == [key]  # it is not run again
    assert not (context.out / "trained" / key).exists()
    assert not (context.out / "ingredients").exists()


def traintrial_key(context, params) -> str:
    from sweeps.spec.trial_key import trial_key
    from sweeps.train.searcher import method

    return trial_key(method("lines"), params, context.contexts["lines"])


def test_what_is_kept_and_gone_is_made_again(context, monkeypatch):
    params = {"epochs": 2.0, "batch_size": 16, "learning_rate": 2e-3}
    key = traintrial_key(context, params)
    trial(context, monkeypatch, {**config(key), "params": params}, halved=False)
    context.settle("lines")
    place = context.out / "ingredients/lines" / key
    assert [each.key for each in context.usable("lines")] == [key]
    scores = json.loads((place / "scores.json").read_text())
    assert scores == {"shifts": {}, "select": scores["select"], "report": scores["report"]}
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    assert recipe["base"] == content_hash(context.base)
    assert recipe["sha256"] == content_hash(inspect(str(place), "x"))
    assert recipe["params"] == {**context.defaults, **params}
    assert "seed" not in recipe["params"]
    shutil.rmtree(place)
    assert context.usable("lines") == []
    assert read_results(context.out, "lines") == []  # else settling would take it for finished


def test_rows_of_shift_sets(tiny_pool, context, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    content = yaml.safe_load((tmp_path / "train.yaml").read_text())
    content["shifts"] = {
        "noise": {"corruption": "gaussian_noise", "severity": 2, "seed": 3},
        "boxes": {"dataset": str(tiny_pool.root / "data/blobs")},
    }
    loaded = load(content, tmp_path)
    tasks = {"lines": open_task(TaskSource("lines", loaded.tasks["lines"].dataset))}
    others = open_shifts(loaded.shifts, "test", tasks)
    inputs = family_in(context.base).inputs(context.base)
    rows = shift_rows(loaded.shifts, "test", inputs, context.data, tasks, others)["lines"]
    assert set(rows) == {"noise", "boxes"}
    clean = open_pixels(context.data["lines"].rows["report"].file)
    noisy = open_pixels(rows["noise"].file)
    expected = corrupt("gaussian_noise", clean.images.numpy(), 2, seed=3)
    assert np.array_equal(noisy.images.numpy(), expected)
    assert noisy.labels.tolist() == clean.labels.tolist()
    assert len(open_pixels(rows["boxes"].file).labels) == 60  # of its own test split
    assert len({mark(one) for one in (*rows.values(), context.data["lines"].rows["report"])}) == 3
    content["shifts"] = {"tones": {"dataset": str(tiny_pool.root / "data/tones")}}
    with pytest.raises(InputError, match="3 classes"):
        open_shifts(load(content, tmp_path).shifts, "test", tasks)
    content |= {"shifts": {"boxes": {"dataset": str(tiny_pool.root / "data/blobs")}}}
    with pytest.raises(InputError, match=r"shifts.boxes.dataset: .*no split 'holdout'; there: t"):
        open_shifts(load(content, tmp_path).shifts, "holdout", tasks)


def command(file: Path, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps", "train", str(file)],
        env={**os.environ, **environment}, cwd=file.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=280)[0]
    assert process.returncode == 0, text
    return text


def hashes(out: Path) -> dict[str, str]:
    """Folder of an ingredient -> SHA-256 of its weights and their configuration."""
    return {
        str(path.relative_to(out)): hash_files(
            {
                file.name: file
                for name in ("*.safetensors", "config.json", "adapter_config.json")
                for file in path.glob(name)
                if file.name != "head.safetensors"
            }
        )
        for path in sorted((out / "ingredients").glob("*/*"))
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_equals_undisturbed(tiny_pool, tmp_path):
    """kill -9 in the middle of fine-tunings: nothing that ended is trained again, same bits."""
    search = {"epochs": 160, "batch_size": 8, "learning_rate": {"loguniform": [1e-4, 1e-2]},
              "augmentation": "randaugment", "swa": 0.5, "trials": 4}  # fmt: skip
    shifts = {"noise": {"corruption": "gaussian_noise", "severity": 5}}
    changes = {"base": str(tiny_pool.root / "base"), "keep": "all", "finetune": search}
    files = []
    for name in ("whole", "killed"):
        content = spec(tiny_pool, tmp_path / name, **changes, shifts=shifts)
        del content["pretrain"], content["tasks"]["tones"]
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(content))
    finished(command(files[0]))
    expected = hashes(tmp_path / "whole")
    assert len(expected) == 8

    out = tmp_path / "killed"
    driver = command(files[1])
    ended = []
    while not (ended and list(out.glob("trained/*/state.pt"))):
        assert driver.poll() is None, "ended before it could be killed"
        ended = list(out.glob("trained/*.json"))
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in ended}
    time.sleep(3)  # workers notice that their driver is gone
    finished(command(files[1]))
    assert hashes(out) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(out.glob("trained/*/state.pt"))
    scores = [json.loads(path.read_text()) for path in out.glob("ingredients/*/*/scores.json")]
    assert len(scores) == 8
    assert all(set(each["shifts"]) == {"noise"} for each in scores)
    pool = yaml.safe_load((out / "pool.yaml").read_text())
    assert len(pool["pool"]["experts"]) == 8
    assert list(pool["tasks"]) == ["lines"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_that_stops_trials_and_keeps_two(tiny_pool, tmp_path):
    from rich.console import Console

    search = {"epochs": 20, "batch_size": 8, "learning_rate": {"loguniform": [1e-5, 1e-2]},
              "ema": 0.9, "trials": 9, "searcher": "tpe", "scheduler": "asha"}  # fmt: skip
    content = spec(tiny_pool, tmp_path / "out", base=str(tiny_pool.root / "base"), keep=2)
    del content["pretrain"]
    content |= {"finetune": search, "splits": {"val_fraction": 0.3}}
    out, console = tmp_path / "out", Console(file=sys.stderr)
    assert train(load(content, tmp_path), console) == []
    results = {path: path.stat().st_mtime_ns for path in out.glob("trained/*.json")}
    assert len(results) == 18
    found = [each for task in ("lines", "tones") for each in read_results(out, task)]
    assert any(each.stopped for each in found)
    assert sum(not each.stopped for each in found) >= 2
    expected = hashes(out)
    assert [path.split("/")[1] for path in expected] == ["lines"] * 2 + ["tones"] * 2
    # Shift sets that come later are measured, and nothing is trained.
    content["shifts"] = {"noise": {"corruption": "gaussian_noise"}}
    assert train(load(content, tmp_path), console) == []
    assert hashes(out) == expected
    assert {path: path.stat().st_mtime_ns for path in results} == results
    scores = [json.loads(path.read_text()) for path in out.glob("ingredients/*/*/scores.json")]
    assert all(0 <= each["shifts"]["noise"] <= 1 for each in scores)


@pytest.mark.parametrize("mode", ["json", "python"])
def test_a_training_file_is_plain_data_with_its_search(tmp_path: Path, mode: str) -> None:
    """MLflow's run of a training has the file's fields as parameters."""
    file = tmp_path / "train.yaml"
    file.write_text(
        "{name: t, out: o, pretrain: {steps: 3}, tasks: {a: {dataset: d}},"
        " finetune: {epochs: {grid: [1, 2]}, trials: null}}"
    )
    found = trainspec.load(file).model_dump(mode=mode)["finetune"]
    assert found == {"learning_rate": 3e-4, "epochs": {"grid": [1.0, 2.0]}}
