"""Steps on real and synthetic images: the mixture by hand, and whole fine-tunings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from actors.data.task_rows import Captioned
from actors.families.clip.fine_tune import cpu_threads
from actors.families.clip.pretrain import Sizes, pretrain, zero_shot_head
from actors.families.clip.synthetic import Synthetic
from actors.families.images.loss import Objective
from tests.actors.training.fine_tuning import fine_tune

SIZES = Sizes(patch=16, width=32, layers=1, heads=1, mlp=32, text_width=16, text_layers=1,
              text_heads=1, text_mlp=16, projection=16)  # fmt: skip
NAMES, TEMPLATES = ("dark", "light"), ("a {} image.",)
PLAIN = Objective(label_smoothing=0, mixup=0, augmentation="none", crop_scale=1, operations=0,
                  magnitude=0, seed=3)  # fmt: skip


def tones(seed: int, count: int = 24) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 90, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return (noise + 130 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def student(pixels: Tensor) -> Tensor:
    return torch.stack([pixels.mean((1, 2, 3)), pixels.amax((1, 2, 3))], dim=1)


def mixed(made: Synthetic, step: int = 0, size: int = 4, real: float = 2.0) -> float:
    loss = made.mixed(
        lambda: torch.tensor(real), PLAIN, step, size, student, lambda x: x.float() / 255, None
    )
    return float(loss)


def test_the_mixture_by_hand() -> None:
    images, labels = tones(0)
    made = Synthetic(images, labels, share=0.25, soft_targets=0.0)
    every = float(F.cross_entropy(student(images.float() / 255), labels))
    assert mixed(made, size=100) == pytest.approx(0.75 * 2.0 + 0.25 * every)  # fewer than asked
    assert mixed(replace(made, share=0.0)) == 2.0
    alone = replace(made, share=1.0).mixed(
        pytest.fail, PLAIN, 0, 100, student, lambda x: x.float() / 255, None
    )
    assert float(alone) == pytest.approx(every)


def test_the_teacher_s_share_is_that_of_the_synthetic_rows() -> None:
    images, labels = tones(0)
    made = Synthetic(images, labels, share=1.0, soft_targets=1.0)
    pixels = images.float() / 255
    soft = F.cross_entropy(student(pixels), (-student(pixels)).softmax(1))
    found = made.mixed(
        pytest.fail, PLAIN, 0, 100, student, lambda x: x.float() / 255, lambda x: -student(x)
    )
    assert float(found) == pytest.approx(float(soft))


def test_each_step_draws_other_rows_the_same_again() -> None:
    made = Synthetic(*tones(0), share=1.0, soft_targets=0.0)
    losses = [mixed(made, step) for step in range(6)]
    assert losses == [mixed(made, step) for step in range(6)]
    assert len(set(losses)) > 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "base"
    corpus = {"tones": Captioned(*tones(1), NAMES, TEMPLATES)}
    return pretrain(corpus, out, sizes=SIZES, steps=4, batch_size=16, threads=1)


def test_whole_fine_tunings(base: Path, tmp_path: Path) -> None:
    """Without a share of theirs, synthetic rows change no bit; with one they do, and rows of
    exchanged labels that are trained on alone turn the model round."""
    from transformers import AutoTokenizer, CLIPModel

    head = zero_shot_head(
        CLIPModel.from_pretrained(base), AutoTokenizer.from_pretrained(base), NAMES, TEMPLATES
    )
    options: dict[str, Any] = {"epochs": 12, "batch_size": 8, "learning_rate": 3e-3}
    images, labels = tones(2)

    def tuned(name: str, **given: Any) -> tuple[bytes, float]:
        losses: list[float] = []
        out = fine_tune(
            base, images, labels, head, tmp_path / name, **options, **given,
            advance=lambda step, total, loss: losses.append(loss),
        )  # fmt: skip
        return (out / "model.safetensors").read_bytes(), losses[-1]

    made = Synthetic(images, 1 - labels, share=0.0, soft_targets=0.0)
    with cpu_threads(1):
        without, least = tuned("without")
        assert tuned("none", synthetic=made)[0] == without
        half, between = tuned("half", synthetic=replace(made, share=0.5))
        turned, alone = tuned("alone", synthetic=replace(made, share=1.0))
    assert len({without, half, turned}) == 3
    assert least < between  # half of the labels say the contrary
    assert alone < between
