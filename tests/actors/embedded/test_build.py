import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from actors.embedded import EmbeddedPool, build, locate
from actors.embedded.build import Recipe
from actors.embedded.tasks import DRAWINGS, generator, parts, web
from fusion.errors import InputError

MICRO = Recipe(
    train=40,
    test=20,
    web=40,
    width=32,
    layers=1,
    pretraining_steps=2,
    epochs=1,
    batch_size=16,
    extractor_steps=2,
)


@pytest.mark.parametrize("task", DRAWINGS)
def test_drawings(task: str) -> None:
    classes = len(DRAWINGS[task].classnames)
    drawn, again, other = parts(task, 0, 60, 30), parts(task, 0, 60, 30), parts(task, 1, 60, 30)
    for split, number in (("train", 60), ("test", 30)):
        part = drawn[split]
        assert part.images.shape == (number, 32, 32, 3)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert np.array_equal(part.images, again[split].images)
        assert np.array_equal(part.labels, again[split].labels)
        assert not np.array_equal(part.images, other[split].images)
        counts = np.bincount(part.labels, minlength=classes)
        assert len(counts) == classes
        if task != "digits":  # the scans are what they are
            assert counts.max() - counts.min() <= 1
    assert images(drawn["train"].images).isdisjoint(images(drawn["test"].images))


def images(stack: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in stack}


def test_digits_are_all_the_scans_once() -> None:
    drawn = parts("digits", 0)
    assert (len(drawn["train"].labels), len(drawn["test"].labels)) == (1198, 599)
    assert np.bincount(drawn["test"].labels).min() > 40
    assert images(drawn["train"].images).isdisjoint(images(drawn["test"].images))


@pytest.mark.parametrize("task", DRAWINGS)
def test_pretraining_has_a_long_tail_and_no_image_of_the_tasks(task: str) -> None:
    from actors.data.task import partition

    corpus, drawn = web(task, 0, 200, 2.5, train=60), parts(task, 0, 60, 30)
    counts = np.bincount(corpus.labels)
    assert counts.max() > 3 * counts.min()
    seen, fit_images = images(corpus.images), images(drawn["train"].images)
    if task == "digits":  # real scans are few: a quarter are those that experts are trained on
        fit, val = partition(drawn["train"].labels)
        fit_images = images(drawn["train"].images[fit])
        assert images(corpus.images[:50]) <= fit_images
        assert images(corpus.images[50:]).isdisjoint(fit_images)
        assert seen.isdisjoint(images(drawn["train"].images[val]))
    else:
        assert seen.isdisjoint(fit_images)
    assert seen.isdisjoint(images(drawn["test"].images))


def test_each_purpose_has_its_own_numbers() -> None:
    draws = [generator(*key).random() for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a", "web"))]
    assert len(set(draws)) == 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedPool:
    root = tmp_path_factory.mktemp("cache") / "pool"
    said: list[float] = []
    built = build(root, progress=lambda what, done: said.append(done), recipe=MICRO)
    assert said == sorted(said)
    assert (said[0], said[-1]) == (0.0, 1.0)
    assert locate(root=root) == built
    return built


def test_models_load_as_from_the_hub(pool: EmbeddedPool) -> None:
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, CLIPVisionModel

    assert len(pool.experts) >= 6
    assert pool.experts.keys() == pool.data.keys() == DRAWINGS.keys()
    model = CLIPModel.from_pretrained(pool.base)
    CLIPProcessor.from_pretrained(pool.base)
    assert AutoTokenizer.from_pretrained(pool.base)("a stop sign.").input_ids
    base = model.vision_model.state_dict()
    for folder in pool.experts.values():
        expert = CLIPVisionModel.from_pretrained(folder).state_dict()
        assert expert.keys() == base.keys()
        assert any(not torch.equal(expert[name], base[name]) for name in base)


def test_the_extractor_loads_as_from_the_hub(pool: EmbeddedPool) -> None:
    from transformers import AutoImageProcessor, ResNetForImageClassification

    from actors.gate_features.extractor import load_extractor, open_extractor

    model = ResNetForImageClassification.from_pretrained(pool.extractor)
    names = [f"{task}: {name}" for task, d in DRAWINGS.items() for name in d.classnames]
    assert list(model.config.id2label.values()) == names
    assert AutoImageProcessor.from_pretrained(pool.extractor).crop_pct == 1.0
    extractor = open_extractor(str(pool.extractor), "gate.extractor")
    assert (extractor.kind, extractor.width) == ("resnet", 128)
    assert extractor.inputs.preprocess.shape == (32, 32)
    images = parts("land", 0, 4, 2)["train"].images
    prepared = extractor.inputs.preprocess.to_uint8(Image.fromarray(images[0]))
    assert np.array_equal(prepared, images[0].transpose(2, 0, 1))  # not enlarged
    found = load_extractor(extractor)({"pixels": torch.from_numpy(prepared)[None]})
    assert found.isfinite().all()
    assert found.min() >= 0


@pytest.mark.slow
def test_a_pool_without_an_extractor_is_completed(pool: EmbeddedPool, cache: Path) -> None:
    from actors.checkpoints.sources import resolve

    root = shutil.copytree(pool.root, cache / "embedded" / "v2-seed0")
    shutil.rmtree(root / "extractor")
    marker = json.loads((root / "pool.json").read_text())
    del marker["recipe"]["extractor_steps"]  # as pools of the first releases have it
    (root / "pool.json").write_text(json.dumps(marker))
    assert resolve("embedded:base", what="pool.base") == root / "base"
    with pytest.raises(InputError, match=r"gate: 'embedded:extractor': .*`python -m actors"):
        resolve("embedded:extractor", what="gate")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()}
    completed = build(recipe=MICRO)
    assert resolve("embedded:extractor", what="gate") == completed.extractor
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        made = (completed.extractor / name).read_bytes()
        assert made == (pool.extractor / name).read_bytes()
    with pytest.raises(InputError, match="made otherwise"):
        build(seed=1, root=root, recipe=MICRO)


def test_data_read_as_any_other(pool: EmbeddedPool) -> None:
    from datasets import load_dataset

    from actors.data.task import TaskSource, open_task

    folder = pool.data["letters"]
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files, cache_dir=str(pool.root / "datasets"))
    assert {split: len(data[split]) for split in data} == {"train": 40, "test": 20}
    expected = parts("letters", 0, 40, 20)["test"]
    assert data["test"].features["label"].names == list(DRAWINGS["letters"].classnames)
    assert np.array_equal(np.asarray(data["test"][3]["image"]), expected.images[3])
    task = open_task(TaskSource("letters", str(folder)))
    assert task.classnames == DRAWINGS["letters"].classnames
    assert task.templates == DRAWINGS["letters"].templates


@pytest.mark.slow
def test_a_killed_build_goes_on(pool: EmbeddedPool, tmp_path: Path) -> None:
    root = shutil.copytree(pool.root, tmp_path / "pool")
    (root / "pool.json").unlink()
    shutil.rmtree(root / "experts" / "land")
    shutil.rmtree(root / "data" / "greek")
    kept = root / "experts" / "greek" / "model.safetensors"
    stamp = kept.stat().st_mtime_ns
    assert locate(root=root) is None
    again = build(root, recipe=MICRO)
    assert kept.stat().st_mtime_ns == stamp
    for name in ("experts/land/model.safetensors", "data/greek/test.parquet", "pool.json"):
        assert (again.root / name).read_bytes() == (pool.root / name).read_bytes()
    # What is finished is found, not made: without its folders, the marker alone decides.
    shutil.rmtree(root / "base")
    assert build(root, recipe=MICRO) == again


def test_another_pool_is_not_overwritten(pool: EmbeddedPool) -> None:
    before = json.loads((pool.root / "pool.json").read_text())
    with pytest.raises(InputError, match="made otherwise"):
        build(pool.root, seed=1, recipe=MICRO)
    assert json.loads((pool.root / "pool.json").read_text()) == before


def test_the_pool_lies_in_the_users_cache(cache: Path, pool: EmbeddedPool) -> None:
    assert locate() is None
    shutil.copytree(pool.root, cache / "embedded" / "v2-seed0")
    found = locate()
    assert found is not None
    assert found.root.is_relative_to(cache)
    assert locate(seed=1) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_literatures_order(tmp_path: Path) -> None:
    """pretrained < simple average < task arithmetic at the λ selected on val < experts, on test."""
    from fusion import TaskVectors, mean_interval, simple_average, task_arithmetic

    pool = build(tmp_path / "pool")
    trial = Trial(pool)
    base, experts = trial.base, trial.experts
    vectors = TaskVectors.from_state_dicts(base, experts)
    grid = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    val = {
        scale: trial.mean(trial.counts(task_arithmetic(vectors, scale=scale), "val"))
        for scale in grid
    }
    best = max(grid, key=val.__getitem__)
    rows = {
        "pretrained": trial.counts(base, "test"),
        "simple average": trial.counts(simple_average(vectors), "test"),
        "task arithmetic": trial.counts(task_arithmetic(vectors, scale=best), "test"),
        "experts": [trial.count(expert, task, "test") for task, expert in experts.items()],
    }
    intervals = {name: mean_interval(counts) for name, counts in rows.items()}
    means = {name: trial.mean(counts) for name, counts in rows.items()}
    report = f"{means} {intervals} λ {best} {val}"
    assert grid[0] < best < grid[-1], report
    ranking = list(rows)
    for lower, higher in pairwise(ranking):
        assert intervals[lower][1] < intervals[higher][0], report
    chance = np.mean([1 / len(drawing.classnames) for drawing in DRAWINGS.values()])
    assert means["pretrained"] > 3 * chance, report
    assert means["experts"] > means["pretrained"] + 0.15, report


class Trial:
    """Accuracies of vision towers on the pool's tasks."""

    def __init__(self, pool: EmbeddedPool) -> None:
        from transformers import AutoTokenizer, CLIPModel, CLIPVisionModel

        from actors.data.task import partition
        from actors.embedded import parquet
        from actors.families.clip.fine_tune import pixel_statistics
        from actors.families.clip.pretrain import zero_shot_head

        self.model = CLIPModel.from_pretrained(pool.base).eval()
        tokenizer = AutoTokenizer.from_pretrained(pool.base)
        self.statistics = pixel_statistics(pool.base)
        self.base = {k: v.clone() for k, v in self.model.vision_model.state_dict().items()}
        self.experts = {
            task: CLIPVisionModel.from_pretrained(folder).state_dict()
            for task, folder in pool.experts.items()
        }
        self.parts, self.heads = {}, {}
        for task, folder in pool.data.items():
            words = DRAWINGS[task]
            self.heads[task] = zero_shot_head(
                self.model, tokenizer, words.classnames, words.templates
            )
            train, test = parquet.read(folder, "train"), parquet.read(folder, "test")
            _, val = partition(train.labels)
            self.parts[task, "val"] = (train.images[val], train.labels[val])
            self.parts[task, "test"] = (test.images, test.labels)

    def count(self, tower: dict[str, torch.Tensor], task: str, split: str) -> tuple[int, int]:
        from actors.families.clip.fine_tune import standardised
        from fusion.logits.cosine_head import logits

        self.model.vision_model.load_state_dict(tower)
        pixels, labels = self.parts[task, split]
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            seen = self.model.vision_model(pixel_values=standardised(inputs, *self.statistics))
            scores = logits(self.model.visual_projection(seen.pooler_output), self.heads[task])
        right = scores.argmax(1).numpy() == labels
        return int(right.sum()), len(right)

    def counts(self, tower: dict[str, torch.Tensor], split: str) -> list[tuple[int, int]]:
        return [self.count(tower, task, split) for task in self.experts]

    def mean(self, counts: list[tuple[int, int]]) -> float:
        return float(np.mean([right / number for right, number in counts]))
