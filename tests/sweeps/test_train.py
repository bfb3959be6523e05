"""`sweeps train`: a base and experts from a file; nothing trained twice."""

import json
import sys

import pytest
import yaml

from fusion.errors import InputError
from sweeps import trainspec
from sweeps.train import train


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
    ],
)
def test_a_training_file_that_will_not_do(changes, expected, tiny_pool, tmp_path):
    with pytest.raises(InputError) as caught:
        load(spec(tiny_pool, tmp_path / "pool", **changes), tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
