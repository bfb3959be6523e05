"""No process that computes leaves TF32 on, whatever it was built for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.families.clip.fine_tune import FineTuning, fine_tune
from actors.gate_features import feature_cache
from actors.gate_features.extractor import load_extractor, open_extractor
from actors.gate_features.feature_cache import own_device, workers
from actors.shards.resident_model import ResidentModel
from tests.actors.conftest import DIM, SIZE, Tiny
from tests.actors.gate_features.test_extractor import write_resnet


def switches() -> tuple[bool, ...]:
    products = torch.backends.cuda.matmul
    return (
        torch.backends.cudnn.allow_tf32,
        products.allow_tf32,
        bool(products.allow_fp16_reduced_precision_reduction),
        bool(products.allow_bf16_reduced_precision_reduction),
    )


@pytest.fixture(autouse=True)
def rough() -> Iterator[None]:
    """A process in which something has switched all of them on."""
    before = switches()
    set_all(True)
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[:2]


def set_all(on: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = on
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = on


def tune(base: Path, out: Path) -> None:
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    options = FineTuning(epochs=1, batch_size=2)
    fine_tune(base, images, torch.tensor([0, 1]), torch.randn(2, DIM), out, options)


USES: dict[str, Callable[[Tiny, Path], Any]] = {
    "shards": lambda tiny, place: ResidentModel(tiny.base(place / "base")),
    "a resnet": lambda tiny, place: load_extractor(
        open_extractor(str(write_resnet(place / "resnet")), "gate.extractor")
    ),
    "fine-tuning": lambda tiny, place: tune(tiny.base(place / "base"), place / "out"),
}


@pytest.mark.parametrize("use", USES)
def test_true_float32_everywhere(use: str, tiny: Tiny, tmp_path: Path) -> None:
    assert all(switches())
    USES[use](tiny, tmp_path)
    assert not any(switches())


def test_the_driver_of_a_sweep_uses_no_gpu_for_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CUDA context would stay, beside the replicas'."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert own_device("cuda") == "cpu"
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert own_device("cuda") == "cuda"
    assert own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device("cuda") == "cpu"


def test_little_work_goes_to_a_gpu_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extractor = open_extractor(str(write_resnet(tmp_path / "resnet")), "gate.extractor")
    chunks = [feature_cache.Chunk("pixels", 0, 10), feature_cache.Chunk("pixels", 10, 20)]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr("actors.cluster.file_visibility.workplaces", lambda files: {})
    assert workers(extractor, chunks, "cuda") == 1
    assert workers(extractor, chunks, "cpu") == 0
