from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from actors.hashes import hash_files
from actors.pretraining import Captioned, Sizes, pretrain, train_tokenizer, zero_shot_head
from actors.training import fine_tune, pixel_statistics, shuffled_batches, staged, standardised

SIZES = Sizes(patch=16, width=32, layers=1, heads=1, mlp=32, text_width=16, text_layers=1,
              text_heads=1, text_mlp=16, projection=16)  # fmt: skip
NAMES, TEMPLATES = ("dark", "light"), ("a {} image.", "{}")


def tones(count: int = 48) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 90, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    return (noise + 130 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "base"
    corpus = {"tones": Captioned(*tones(), NAMES, TEMPLATES)}
    return pretrain(corpus, out, sizes=SIZES, steps=6, batch_size=16, threads=1)


@pytest.fixture(scope="module")
def head(base: Path) -> Tensor:
    from transformers import AutoTokenizer, CLIPModel

    return zero_shot_head(
        CLIPModel.from_pretrained(base), AutoTokenizer.from_pretrained(base), NAMES, TEMPLATES
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_base_is_a_hugging_face_folder(base: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    processor = CLIPProcessor.from_pretrained(base)
    images = tones(2)[0].permute(0, 2, 3, 1).numpy()
    inputs = processor(
        text=["a dark image.", "something never heard of: Ünïcode 7"],
        images=[Image.fromarray(image) for image in images],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(base)(**inputs).logits_per_image
    assert logits.shape == (2, 2)
    assert bool(logits.isfinite().all())


def test_the_text_tower_pools_at_the_end_of_the_text(base: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    tokenizer, model = AutoTokenizer.from_pretrained(base), CLIPModel.from_pretrained(base)
    config = model.config.text_config
    ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert config.eos_token_id != 2  # 2 switches on CLIP's legacy pooling
    alone = tokenizer(["dark"], return_tensors="pt")
    padded = tokenizer(["dark", "a rather long light image."], return_tensors="pt", padding=True)
    with torch.no_grad():
        one = model.get_text_features(**alone).pooler_output[0]
        other = model.get_text_features(**padded).pooler_output[0]
    torch.testing.assert_close(one, other)


def test_the_tokenizer_learns_words_and_spells_the_rest() -> None:
    texts = ["a photo of a forest.", "the letter a."]
    tokenizer = train_tokenizer(texts)
    assert tokenizer.tokenize("a photo of a FOREST.") == [
        "a</w>", "photo</w>", "of</w>", "a</w>", "forest</w>", ".</w>",
    ]  # fmt: skip
    unheard = tokenizer("zebra ß", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in unheard
    assert tokenizer.get_vocab() == train_tokenizer(texts).get_vocab()


def test_pixels_are_those_of_the_image_processor(base: Path) -> None:
    from transformers import CLIPProcessor

    images = tones(3)[0]
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    processor = CLIPProcessor.from_pretrained(base).image_processor
    expected = processor(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(standardised(images, *pixel_statistics(base)), expected)


def test_the_head_is_that_of_the_sweeps(base: Path, head: Tensor, tmp_path: Path) -> None:
    from actors.checkpoints import inspect
    from actors.heads import TextEncoder
    from fusion import zeroshot

    encoder = TextEncoder(inspect(str(base), "pool.base"))
    texts = [template.format(name) for name in NAMES for template in TEMPLATES]
    rows = encoder.embed(texts, "task").view(2, 2, -1)
    torch.testing.assert_close(head, zeroshot.zero_shot_head(list(rows), encoder.logit_scale))


def test_pretraining_has_the_same_bits_again(base: Path, tmp_path: Path) -> None:
    corpus = {"tones": Captioned(*tones(), NAMES, TEMPLATES)}
    torch.manual_seed(99)  # the caller's generator plays no part, and is left alone
    state = torch.get_rng_state()
    again = pretrain(corpus, tmp_path / "base", sizes=SIZES, steps=6, batch_size=16, threads=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert hash_files(files(again)) == hash_files(files(base))


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def test_fine_tuning(base: Path, head: Tensor, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    before, losses = hash_files(files(base)), []

    def advance(step: int, total: int, loss: float) -> None:
        assert (step, total) == (len(losses) + 1, 12)
        losses.append(loss)

    options: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3}
    threads = torch.get_num_threads()
    one = fine_tune(base, *tones(), head, tmp_path / "one", advance=advance, **options)
    two = fine_tune(base, *tones(), head, tmp_path / "two", **options)
    other = fine_tune(base, *tones(), head, tmp_path / "other", seed=1, **options)
    assert weights(one) == weights(two)
    assert weights(one) != weights(other)
    assert losses[-1] < losses[0]
    assert hash_files(files(base)) == before
    assert torch.get_num_threads() == threads
    # Only the vision tower is there, and all of it, beside the image processor.
    names = set(CLIPVisionModel.from_pretrained(base).state_dict())
    assert set(CLIPVisionModel.from_pretrained(one).state_dict()) == names
    assert not any("text" in name or "projection" in name for name in load_file(
        one / "model.safetensors"))  # fmt: skip
    assert (one / "preprocessor_config.json").exists()


def test_interrupted_training_leaves_nothing(base: Path, head: Tensor, tmp_path: Path) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base, *tones(), head, tmp_path / "out", advance=stop)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_who_finishes_first_wins(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as late:
        (late / "who").write_text("late")
        with staged(tmp_path / "out") as early:
            (early / "who").write_text("early")
    assert (tmp_path / "out" / "who").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_batches_are_passes_in_new_orders() -> None:
    rows = torch.cat(list(shuffled_batches(10, 4, 5, seed=0)))
    assert [sorted(rows[:10].tolist()), sorted(rows[10:].tolist())] == [list(range(10))] * 2
    assert rows[:10].tolist() != rows[10:].tolist()
    assert [len(batch) for batch in shuffled_batches(3, 8, 2, seed=0)] == [3, 3]
    again = torch.cat(list(shuffled_batches(10, 4, 5, seed=0)))
    assert np.array_equal(rows.numpy(), again.numpy())
