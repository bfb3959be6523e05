from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.data.images.augment import mixed
from actors.data.task_rows import Captioned
from actors.families.clip.fine_tune import (
    cpu_threads,
    pixel_statistics,
    shuffled_batches,
    staged,
    standardised,
)
from actors.families.clip.pretrain import Sizes, pretrain, train_tokenizer, zero_shot_head
from actors.families.images.loss import Objective
from actors.files.hashes import hash_files
from actors.training.checkpoint import Averages
from actors.training.random_numbers import draws
from fusion.errors import InputError
from fusion.logits import cosine_head
from tests.actors.training.fine_tuning import fine_tune

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
    from actors.families.clip.zero_shot_heads import TextEncoder, open_tokenizer
    from actors.families.registry import inspect
    from fusion.logits import cosine_head

    checkpoint = inspect(str(base), "pool.base")
    encoder = TextEncoder(checkpoint, open_tokenizer(checkpoint))
    texts = [template.format(name) for name in NAMES for template in TEMPLATES]
    rows = encoder.embed(texts, "task").view(2, 2, -1)
    torch.testing.assert_close(head, cosine_head.zero_shot_head(list(rows), encoder.logit_scale))


def test_pretraining_has_the_same_bits_again(base: Path, tmp_path: Path) -> None:
    corpus = {"tones": Captioned(*tones(), NAMES, TEMPLATES)}
    torch.manual_seed(99)  # the caller's generator plays no part, and is left alone
    state = torch.get_rng_state()
    again = pretrain(corpus, tmp_path / "base", sizes=SIZES, steps=6, batch_size=16, threads=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert hash_files(files(again)) == hash_files(files(base))


def test_a_pretraining_that_was_killed_goes_on_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    corpus, seen = {"tones": Captioned(*tones(), NAMES, TEMPLATES)}, []
    state = tmp_path / "state.pt"

    def killed(step: int, total: int, loss: float) -> None:
        seen.append(step)
        if step == 4:
            raise KeyboardInterrupt

    given: dict[str, Any] = {"sizes": SIZES, "steps": 6, "batch_size": 16, "threads": 1}
    with pytest.raises(KeyboardInterrupt):
        pretrain(corpus, tmp_path / "base", state=state, advance=killed, **given)
    assert torch.load(state, weights_only=True)["step"] == 3
    assert not (tmp_path / "base").exists()

    def more(step: int, total: int, loss: float) -> None:
        seen.append(step)

    again = pretrain(corpus, tmp_path / "base", state=state, advance=more, **given)
    assert seen == [1, 2, 3, 4, 4, 5, 6]
    assert hash_files(files(again)) == hash_files(files(base))
    assert not state.exists()


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


def test_what_was_staged_is_read_by_others(tmp_path: Path) -> None:
    """Weights are written through `tempfile`, for their owner only."""
    with staged(tmp_path / "out") as folder:
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    for made, wanted in (("out", "plain"), ("out/model.safetensors", "plain/file")):
        assert (tmp_path / made).stat().st_mode == (tmp_path / wanted).stat().st_mode


def test_batches_are_passes_in_new_orders() -> None:
    rows = torch.cat(list(shuffled_batches(10, 4, 5, seed=0)))
    assert [sorted(rows[:10].tolist()), sorted(rows[10:].tolist())] == [list(range(10))] * 2
    assert rows[:10].tolist() != rows[10:].tolist()
    assert [len(batch) for batch in shuffled_batches(3, 8, 2, seed=0)] == [3, 3]
    again = torch.cat(list(shuffled_batches(10, 4, 5, seed=0)))
    assert np.array_equal(rows.numpy(), again.numpy())


def plain_run(base: Path, head: Tensor, steps: int, batch: int, rate: float) -> list[dict]:
    """The weights after each step of fine-tuning as it is described, written once more."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(base).eval().requires_grad_(False)
    tower = model.vision_model.requires_grad_(True)
    images, labels = tones()
    named = list(tower.named_parameters())
    matrices = [p for n, p in named if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in named if p.ndim <= 1 or "embedding" in n]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others}],
        lr=rate, weight_decay=0.0, fused=True,
    )  # fmt: skip
    warm, seen = max(1, round(0.1 * steps)), []
    for step, rows in enumerate(shuffled_batches(len(images), batch, steps, 0)):
        rise = (step + 1) / warm
        fall = 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))
        for group in optimiser.param_groups:
            group["lr"] = rate * (rise if step < warm else fall)
        z = model.visual_projection(
            tower(pixel_values=standardised(images[rows], *pixel_statistics(base))).pooler_output
        )
        z = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        torch.nn.functional.cross_entropy(z @ head.T, labels[rows]).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seen.append({name: value.detach().clone() for name, value in tower.state_dict().items()})
    return seen


def short(tensors: dict) -> dict:
    """By the end of the name, which versions of transformers agree on."""
    return {name.removeprefix("vision_model."): value for name, value in tensors.items()}


def test_defaults_and_averages_are_what_they_are_said_to_be(
    base: Path, head: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    with cpu_threads(1):
        seen = plain_run(base, head, 6, 16, 3e-3)
    plain = fine_tune(base, *tones(), head, tmp_path / "plain", **options)
    out = fine_tune(base, *tones(), head, tmp_path / "run", ema=0.5, swa=0.5, **options)
    assert weights(out) == weights(plain)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "run", "run-ema", "run-swa"]
    last = short(load_file(plain / "model.safetensors"))
    ema = short(load_file(tmp_path / "run-ema" / "model.safetensors"))
    swa = short(load_file(tmp_path / "run-swa" / "model.safetensors"))
    assert last.keys() == ema.keys() == swa.keys() <= seen[0].keys()
    for name in last:
        assert torch.equal(last[name], seen[-1][name])
        mean = torch.stack([one[name].double() for one in seen[3:]]).mean(0)
        torch.testing.assert_close(swa[name].double(), mean, rtol=1e-6, atol=1e-7)
        moving = seen[0][name].double()
        for t, one in enumerate(seen[1:]):
            decay = min(0.5, (1 + t) / (10 + t))
            moving = decay * moving + (1 - decay) * one[name].double()
        torch.testing.assert_close(ema[name].double(), moving, rtol=1e-5, atol=1e-6)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(base: Path, head: Tensor, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "mixup": 0.4, "ema": 0.9,
        "swa": 0.5, "augmentation": "randaugment", "soft_targets": 0.3,
    }  # fmt: skip
    whole = fine_tune(base, *tones(), head, tmp_path / "whole", **options)
    state, steps, looks = tmp_path / "state.pt", [], []

    def stop_at(last: int):
        def advance(step: int, total: int, loss: float) -> None:
            steps.append(step)
            if step == last:
                raise Killed

        return advance

    def look(share: float, embed) -> None:
        assert embed(tones(3)[0]).shape == (3, 16)
        looks.append(share)

    out, given = tmp_path / "out", {**options, "state": state, "look": look}
    for last in (5, 13):  # of 18: after the states of steps 2 and 12
        with pytest.raises(Killed):
            fine_tune(base, *tones(), head, out, advance=stop_at(last), **given)
        assert state.exists()
        assert not out.exists()
    fine_tune(base, *tones(), head, out, advance=stop_at(0), **given)
    assert steps == [*range(1, 6), *range(3, 14), *range(13, 19)]
    assert looks == [1 / 9, 1 / 9, 1 / 3, 2 / 3, 2 / 3]
    assert not state.exists()
    for kind in ("", "-ema", "-swa"):
        one, two = (path.with_name(path.name + kind) for path in (whole, out))
        assert weights(one) == weights(two)
    assert weights(whole) != weights(whole.with_name("whole-ema"))


def test_a_damaged_state_is_begun_anew(base: Path, head: Tensor, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half")
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16}
    out = fine_tune(base, *tones(), head, tmp_path / "out", state=tmp_path / "state.pt", **options)
    assert weights(out) == weights(fine_tune(base, *tones(), head, tmp_path / "new", **options))


def test_frozen_batch_norm_is_refused_where_there_is_none(
    base: Path, head: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no batch norm; false allowed"):
        fine_tune(base, *tones(), head, tmp_path / "out", frozen_batchnorm=True)
    assert list(tmp_path.iterdir()) == []


def test_averages_get_statistics_of_their_own() -> None:
    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Linear(2, 2, bias=False)
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.norm(self.scale(pixel_values))

    tower, averages = Tower().eval(), Averages(0.0, 1.0, 2)
    for step, value in ((1, 1.0), (2, 3.0)):
        with torch.no_grad():
            tower.scale.weight.copy_(value * torch.eye(2))
        averages.update(step, tower)
    rows = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    ((kind, model),) = averages.models(tower, lambda: [{"pixel_values": rows}])
    assert kind == "swa"
    assert model.norm.running_mean.tolist() == [4.0, 4.0]  # of rows times the mean weight, 2
    assert model.norm.running_var.tolist() == [8.0, 32.0]
    assert tower.norm.running_mean.tolist() == [0.0, 0.0]


def objective(**changes: Any) -> Objective:
    plain = {"label_smoothing": 0.0, "mixup": 0.0, "augmentation": "none", "crop_scale": 0.9,
             "operations": 2, "magnitude": 9.0, "soft_targets": 0.0, "soft_temperature": 2.0,
             "seed": 0}  # fmt: skip
    return Objective(**{**plain, **changes})


def test_the_loss_by_hand() -> None:
    images, labels = torch.zeros(2, 1, 1, 2, dtype=torch.uint8), torch.tensor([0, 1])
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # 5·(0.6, 0.8), (1, 0): logits are those
    told = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # the teacher's logits
    logits = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    hard = -logits.log_softmax(1)[[0, 1], [0, 1]].mean()
    soft = -(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double() / 2).softmax(1)
    soft = (soft * logits.log_softmax(1)).sum(1).mean()

    def loss(**changes: Any) -> float:
        value = objective(**changes).loss(
            1,
            images,
            labels,
            lambda x: cosine_head.logits(z, torch.eye(2)),
            lambda x: x.float(),
            lambda x: told,
        )
        return float(value)

    assert loss() == pytest.approx(float(hard))
    assert loss(soft_targets=1.0) == pytest.approx(float(soft))
    assert loss(soft_targets=0.25) == pytest.approx(float(0.75 * hard + 0.25 * soft))
    _, order, share = mixed(images.float(), 0.5, draws(0, 1, "mixup"))
    other = -logits.log_softmax(1)[[0, 1], labels[order]].mean()
    assert loss(mixup=0.5) == pytest.approx(float(share * hard + (1 - share) * other))
    assert order.tolist() == [1, 0] or share == 1  # else this would say nothing


def test_a_tower_is_tuned_under_the_probe_s_head_and_taught_under_the_words(
    base: Path, head: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3}
    probe = head.flip(0)

    def tuned(name: str, words: Tensor = head, **more: Any) -> bytes:
        return weights(fine_tune(base, *tones(), words, tmp_path / name, **{**options, **more}))

    under: dict[str, Any] = {"head": "linear_probe", "probe": probe}
    assert tuned("probe", **under) == tuned("same", words=probe)  # nothing else differs
    assert tuned("unread", probe=probe) == tuned("words")
    assert tuned("taught", soft_targets=0.5, **under) != tuned("other", words=probe,
                                                               soft_targets=0.5)  # fmt: skip
    with pytest.raises(InputError, match="head: 'linear_probe': no probe is given"):
        tuned("none", head="linear_probe")
    assert not (tmp_path / "none").exists()
