"""Fine-tuning, extractors and what `sweeps train` measures with, on the pretended device."""

import pytest
import torch
from safetensors.torch import load_file

from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.gate_features.extractor import load_extractor, open_extractor
from actors.gate_features.feature_cache import open_features, prepare_features
from actors.pool.pool import open_pool
from tests.actors.training.fine_tuning import fine_tune
from tests.pretend.device import OnGpu, pretending

WAYS = {
    "plain": {},
    "mixup and smoothing": {"mixup": 0.4, "label_smoothing": 0.1},
    "crops": {"augmentation": "crop_flip"},
    "randaugment": {"augmentation": "randaugment"},
    "a teacher and averages": {"soft_targets": 0.5, "ema": 0.9, "swa": 0.5},
}


@pytest.fixture(scope="module")
def micro_batch():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=draw).to(torch.uint8)
    return images, torch.randint(0, 3, (24,), generator=draw)


def head_of(pool):
    width = pool.base.tensors["visual_projection.weight"].shape[0]
    return torch.randn(3, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pool(tiny_pool):
    return open_pool(str(tiny_pool.root / "base"), {"e": str(tiny_pool.root / "experts/tones")})


def tuned(pool, micro_batch, out, device, **how):
    given = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "device": device, **how}
    fine_tune(pool.base.folder, *micro_batch, head_of(pool), out, **given)
    return {
        file.parent.name.replace(out.name, ""): load_file(file)
        for file in sorted(out.parent.glob(f"{out.name}*/model.safetensors"))
    }


def assert_models(found, wanted):
    assert list(found) == list(wanted)
    for kind, tensors in wanted.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[kind][name], tensor, rtol=1e-3, atol=1e-4)


QUICK = ("plain",)


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_fine_tuning(way, pool, micro_batch, tmp_path):
    wanted = tuned(pool, micro_batch, tmp_path / "cpu" / "out", "cpu", **WAYS[way])
    with pretending():
        found = tuned(pool, micro_batch, tmp_path / "gpu" / "out", "cuda", **WAYS[way])
    assert_models(found, wanted)


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_fine_tuning_goes_on_where_it_was_stopped(pool, micro_batch, tmp_path):
    how = {"epochs": 2, "stops": (0.34,), "ema": 0.9, "mixup": 0.2}

    def stop(step, steps, loss):
        if step == 3:
            raise Stopped

    state = tmp_path / "state"
    with pretending():
        whole = tuned(pool, micro_batch, tmp_path / "whole", "cuda", **how)
        with pytest.raises(Stopped):
            tuned(pool, micro_batch, tmp_path / "cut", "cuda", state=state, advance=stop, **how)
        assert state.exists()
        resumed = tuned(pool, micro_batch, tmp_path / "cut", "cuda", state=state, **how)
    for kind, tensors in whole.items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed[kind][name], tensor), (kind, name)


def test_extractors(pool, tiny_pool, tmp_path):
    extractor = open_extractor(str(pool.base.folder), "gate.extractor")
    draw = torch.Generator().manual_seed(2)
    size = (5, 3, *extractor.inputs.preprocess.shape)
    pixels = torch.randint(0, 256, size, generator=draw).to(torch.uint8)
    with pretending():
        found = load_extractor(extractor, "cuda")({"pixels": pixels})
    assert isinstance(found, OnGpu)
    torch.testing.assert_close(
        found.real, load_extractor(extractor)({"pixels": pixels}), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_resnets(tmp_path):
    from tests.actors.gate_features.test_extractor import write_resnet

    extractor = open_extractor(str(write_resnet(tmp_path / "resnet")), "gate.extractor")
    pixels = torch.full((3, 3, *extractor.inputs.preprocess.shape), 90, dtype=torch.uint8)
    with pretending():
        found = load_extractor(extractor, "cuda")({"pixels": pixels})
    torch.testing.assert_close(
        found.real, load_extractor(extractor)({"pixels": pixels}), rtol=1e-4, atol=1e-5
    )


def test_features_of_a_split(pool, tiny_pool, tmp_path):
    extractor = open_extractor(str(pool.base.folder), "gate.extractor")
    task = open_task(TaskSource("tones", str(tiny_pool.root / "data/tones")))
    found = []
    for device in ("cpu", "cuda"):
        with pretending():
            (path,) = prepare_features(
                extractor, {"tones": task}, [("tones", "test")], tmp_path / device, device=device
            ).values()
        found.append(open_features(path))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_trained_model_is_measured_there(pool, tiny_pool, tmp_path):
    """What `sweeps train` does after a fine-tuning, on a machine with a GPU."""
    task = open_task(TaskSource("e", str(tiny_pool.root / "data/tones")))
    data = prepare_data(pool.base, {"e": task}, Splits(), ["select"], tmp_path / "cache")
    scores = []
    for device in ("cpu", "cuda"):
        with pretending():
            kept = EmbeddingCache(tmp_path / device, {})
            experts = local_experts(pool, data, kept, device=device)
            scores.append(experts.evaluate(Recipe("simple_average"), "select").metrics())
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
