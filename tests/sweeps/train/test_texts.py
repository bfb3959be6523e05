"""`sweeps train` of text classifiers: starts, trials, pools of ingredients, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.checkpoints.checkpoint import content_hash
from actors.data.task import Splits
from actors.experts.evaluation import TaskScore
from actors.families.registry import inspect
from fusion.errors import InputError
from sweeps.train import spec as trainspec
from sweeps.train import trial as traintrial
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import read_results
from sweeps.train.inputs.starts import make_starts, start_folder
from sweeps.train.run import ROLES, contexts, load, opened
from tests.sweeps.program import TWO, comparison, in_process
from tests.sweeps.train.test_run import command, finished, hashes
from tests.tiny_bert import Models, make_models, write_texts

CLASSES = {"film": ("good", "bad", "fine"), "play": ("good", "bad")}
SEARCH = {"epochs": 2, "batch_size": 8, "learning_rate": {"grid": [1e-3, 3e-3]}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))["bert"]


@pytest.fixture
def content(models: Models, tmp_path: Path) -> dict[str, Any]:
    """A training file over an encoder, of two tasks."""
    models.write(tmp_path / "encoder", encoder=True)
    for at, (task, classes) in enumerate(CLASSES.items()):
        write_texts(tmp_path / task, classes, at)
    tasks: dict[str, Any] = {task: {"dataset": str(tmp_path / task)} for task in CLASSES}
    tasks["play"]["metric"] = "matthews"
    return {
        "name": "t", "out": str(tmp_path / "out"), "base": str(tmp_path / "encoder"),
        "tasks": tasks, "splits": {"val_fraction": 0.3}, "finetune": SEARCH, "keep": "all",
    }  # fmt: skip


def written(content: dict[str, Any], folder: Path, name: str = "t") -> Path:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{name}.yaml"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finetune": {"augmentation": "crop"}},
         "augmentation: 'crop': a hyper-parameter of clip, vision models; the base is a bert mod"),
        ({"finetune": {"head": "linear_probe"}}, "head: 'linear_probe': a hyper-parameter of"),
        ({"finetune": {"epoch": 1}}, "unknown parameter 'epoch'; did you mean 'epochs'?"),
        ({"finetune": {"lora": {}}}, "lora: {}: a hyper-parameter of t5 models; the base is a ber"),
        ({"finetune": {"schedule": "step"}}, "schedule: 'step': one of 'linear', 'cosine'"),
        ({"finetune": {"scheduler": "pbt"}}, "of learning_rate, weight_decay, label_smoothing, cl"),
        ({"base": None, "pretrain": {"family": "bert"}},
         "pretrain.family: 'bert': no family that a base can be made of; clip allowed"),
    ],
)  # fmt: skip
def test_a_training_file_that_will_not_do(
    changes: dict[str, Any], expected: str, content: dict[str, Any], tmp_path: Path
) -> None:
    given = {name: value for name, value in {**content, **changes}.items() if value is not None}
    with pytest.raises(InputError) as caught:
        trainspec.load(written(given, tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": "whole"}, "base: {root}/whole: has a classifier of 3 classes"),
        ({"shifts": {"n": {"corruption": "gaussian_noise"}}}, "shifts.n: corruption: "),
        ({"tasks": {"film": {"dataset": "{root}/film", "templates": ["a {}"]}}}, "templates"),
    ],
)
def test_nothing_is_started_of_an_unsuitable_file(
    changes: dict[str, Any],
    expected: str,
    content: dict[str, Any],
    models: Models,
    tmp_path: Path,
) -> None:
    models.write(tmp_path / "whole")
    text = json.dumps({**content, **changes}).replace("{root}", str(tmp_path))
    given = json.loads(text)
    given["base"] = str(tmp_path / given["base"])
    done = in_process("train", str(written(given, tmp_path)), cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected.replace("{root}", str(tmp_path)) in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def context(content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tasks, as trials find them."""
    from actors.data.task import open_task

    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    spec = trainspec.load(written(content, tmp_path))
    base, training, inputs = opened(spec)
    tasks = {name: open_task(each.source(name), inputs.kind) for name, each in spec.tasks.items()}
    out, splits = tmp_path / "out", Splits(**spec.splits.model_dump())
    starts = make_starts(training, base, tasks, 0, out)

    class Silent:
        def set(self, *_: Any) -> None:
            """Nothing is shown."""

    data = load(starts, tasks, splits, ROLES, Silent())
    about = contexts(spec, starts, tasks, splits)
    return FineTuningContext(spec, base, starts, data, about, out, training)


def test_starts_are_made_once_and_again_for_another_seed(context: FineTuningContext) -> None:
    from actors.data.task import open_task

    tasks = {
        name: open_task(each.source(name), "text") for name, each in context.spec.tasks.items()
    }
    file = start_folder(context.out, "film") / "model.safetensors"
    before = file.stat().st_mtime_ns
    again = make_starts(context.training, context.base, tasks, 0, context.out)
    assert file.stat().st_mtime_ns == before
    assert again["film"].fields["labels"] == CLASSES["film"]
    first = again["film"].fingerprint
    other = make_starts(context.training, context.base, tasks, 1, context.out)
    assert other["film"].fingerprint != first
    assert contexts(context.spec, other, tasks, Splits())["film"] != context.contexts["film"]


def ran(context: FineTuningContext, monkeypatch: pytest.MonkeyPatch, key: str, task: str,
        stop: int | None = None, **changes: Any) -> list[dict[str, Any]]:  # fmt: skip
    """What a trial reports; at rung `stop` it is ended, as Tune ends one."""
    reports = []

    def report(result: dict[str, Any]) -> None:
        reports.append(result)
        if stop is not None and result["rung"] == stop:
            raise SystemExit

    monkeypatch.setattr(traintrial.tune, "report", report)
    params = {"epochs": 3.0, "batch_size": 8, "learning_rate": 3e-3, "ema": 0.9} | changes
    config = {"task": task, "trial_key": key, "seed": 3, "params": params}
    given = (context.folders, context.data, context.contexts, context.out, "cpu", True)
    try:
        traintrial.fine_tune_trial(config, *given)
    except SystemExit:
        assert stop is not None
    return reports


def test_a_trial_goes_on_where_it_was_killed_and_is_scored_by_the_task_s_metric(
    context: FineTuningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ran(context, monkeypatch, "one", "play")
    assert [each["rung"] for each in whole] == [1, 3, 9]
    assert ran(context, monkeypatch, "two", "play", stop=3) == whole[:2]
    assert (context.out / "trained/two/state.pt").exists()
    assert ran(context, monkeypatch, "two", "play") == whole
    one, two = read_results(context.out, "play")
    assert one.made == two.made
    assert [each["kind"] for each in one.made] == ["expert", "ema"]
    from actors.artifacts.recipe import Recipe
    from actors.experts.embedding_cache import EmbeddingCache
    from actors.experts.local import local_experts
    from actors.pool.pool import open_pool

    place = context.out / "trained/one/expert"
    pool = open_pool(str(context.folders["play"]), {"play": str(place)})
    data = {"play": context.data["play"]}
    experts = local_experts(pool, data, EmbeddingCache(place, {}), results="float32")
    found = experts.evaluate(Recipe("simple_average"), "report").metrics()
    assert one.report == found["matthews/play"] != found["acc/play"]
    context.settle("play")


def test_a_correlation_that_is_not_defined_is_no_score() -> None:
    class Constant(TaskScore):
        def values(self) -> dict[str, float]:
            return {"pearson": float("nan")}

    assert traintrial.own_score(Constant(None, 0.0, {}, "pearson")) == 0.0  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_ingredients_are_trained_and_souped(
    content: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    from transformers import AutoModelForSequenceClassification

    done = in_process("train", str(written(content, tmp_path)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    kept = hashes(out)
    assert len(kept) == 4
    for place in kept:
        model = AutoModelForSequenceClassification.from_pretrained(out / place)
        assert tuple(model.config.id2label.values()) == CLASSES[place.split("/")[1]]
        recipe = yaml.safe_load((out / place / "recipe.yaml").read_text())
        assert recipe["base"] == content_hash(inspect(content["base"], "x"))
        assert recipe["start"] != recipe["base"]
    done = in_process("train", str(tmp_path / "t.yaml"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hashes(out) == kept
    soup = yaml.safe_load((out / "pool-film.yaml").read_text())
    assert soup["pool"]["base"] == str(out / "starts/film")
    assert len(soup["pool"]["experts"]) == 2
    first = next(iter(soup["pool"]["experts"]))
    methods = {"greedy_soup": {}, "wise_ft": {"expert": first, "alpha": {"grid": [0.5, 1.0]}}}
    written({"name": "s", **soup, "methods": methods}, tmp_path, "s")
    done = in_process("run", "s.yaml", *TWO, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"] for row in comparison(tmp_path / "outputs/s")["rows"]}
    assert rows >= {*methods, "uniform_soup", "best_single", "ensemble"}
    # The best of each task are experts of a pool over the encoder.
    best = {**content, "keep": "best", "out": str(tmp_path / "best")}
    done = in_process("train", str(written(best, tmp_path, "best")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pool = yaml.safe_load((tmp_path / "best/pool.yaml").read_text())
    assert pool["pool"]["base"] == content["base"]
    sweep = {"name": "e", **pool, "tasks": content["tasks"], "methods": {"task_arithmetic": {}}}
    written(sweep, tmp_path, "e")
    done = in_process("plan", "e.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_equals_undisturbed(content: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 in the middle of fine-tunings: nothing that ended is trained again, same bits."""
    search = {"epochs": 120, "batch_size": 4, "learning_rate": {"loguniform": [1e-4, 1e-2]},
              "swa": 0.5, "trials": 4}  # fmt: skip
    content["finetune"] = search
    del content["tasks"]["play"]
    files = [
        written({**content, "out": str(tmp_path / name)}, tmp_path, name)
        for name in ("whole", "killed")
    ]
    environment = {"FUSION_SWEEPS_CACHE": os.environ["FUSION_SWEEPS_CACHE"]}
    finished(command(files[0], **environment))
    expected = hashes(tmp_path / "whole")
    assert len(expected) == 8
    out = tmp_path / "killed"
    driver = command(files[1], **environment)
    ended: list[Path] = []
    while not (ended and list(out.glob("trained/*/state.pt"))):
        assert driver.poll() is None, "ended before it could be killed"
        ended = list(out.glob("trained/*.json"))
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in ended}
    time.sleep(3)  # workers notice that their driver is gone
    finished(command(files[1], **environment))
    assert hashes(out) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(out.glob("trained/*/state.pt"))
