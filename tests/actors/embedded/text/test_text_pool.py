"""The embedded text pool: what is drawn, what the models learn, same seed same bits."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from actors.checkpoints.sources import resolve, resolve_data
from actors.embedded.text.build import Recipe, build, parts
from actors.embedded.text.tasks import DRAWINGS, NUMBERS, draw, guessed, vocabulary
from actors.embedded.text.train import Options, Sizes, pretrain
from actors.files.embedded_pool import TEXT, default_root, locate
from fusion.errors import InputError

RECIPE = Recipe(train=60, test=40, known=40)


@pytest.mark.parametrize("task", DRAWINGS)
def test_classes_are_balanced_and_no_text_is_in_two_splits(task):
    test, train, pretraining = parts(task, 3, RECIPE)
    texts = [text for part in (test, train, *pretraining) for text in part.texts]
    assert len(texts) == len(set(texts)) == 60 + 40 + 40 + 40
    counts = Counter(train.labels)
    assert set(counts) == set(range(len(DRAWINGS[task].targets)))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", DRAWINGS)
def test_same_seed_same_texts_and_another_seed_others(task):
    first, second = (draw(task, "train", 30, seed, set()) for seed in (1, 1))
    assert first == second
    assert set(first.texts) != set(draw(task, "train", 30, 2, set()).texts)


def test_answers_are_words_of_one_task_only():
    """An expert that is surer of another task's answer would be chosen for it."""
    targets = [target for drawing in DRAWINGS.values() for target in drawing.targets]
    assert len(targets) == len(set(targets))
    assert set(targets) <= set(vocabulary())


@pytest.mark.parametrize("task", DRAWINGS)
def test_every_word_is_in_the_vocabulary_and_prompts_are_short(task):
    part = draw(task, "test", 300, 0, set())
    prompts = [DRAWINGS[task].template.format(text=text).split() for text in part.texts]
    assert {word for prompt in prompts for word in prompt} <= set(vocabulary())
    assert max(map(len, prompts)) <= 26


def test_the_label_of_larger_is_the_larger_number():
    part = draw("larger", "test", 50, 0, set())
    for text, label in zip(part.texts, part.labels, strict=True):
        first, _, second, *_ = text.split()
        assert (
            DRAWINGS["larger"].targets[label]
            == NUMBERS[max(NUMBERS.index(first), NUMBERS.index(second))]
        )


def test_a_negation_turns_the_sentiment():
    part = draw("sentiment", "test", 200, 0, set())
    seen = {}
    for text, label in zip(part.texts, part.labels, strict=True):
        *_, word = text.split()
        seen.setdefault(word, set()).add((" not " in text, label))
    both = [found for found in seen.values() if len(found) == 2]
    assert both
    assert all(len({negated != bool(label) for negated, label in found}) == 1 for found in both)


@pytest.mark.parametrize("task", ["topic", "kind", "intent", "sentiment"])
def test_the_known_half_uses_fewer_words(task):
    def used(known):
        texts = draw(task, "x", 900, 0, set(), known).texts
        return {word for text in texts for word in text.split()}

    assert used(True) < used(False)


def test_random_labels_are_not_the_right_ones():
    found, right = guessed("intent", 300, 0, set()), draw("intent", "guessed", 300, 0, set())
    assert found.texts == right.texts
    agree = sum(a == b for a, b in zip(found.labels, right.labels, strict=True))
    assert 0.1 < agree / 300 < 0.35  # one in five by chance


def test_same_seed_same_bits_and_the_projection_is_untied(tmp_path):
    data = {task: parts(task, 0, RECIPE)[2] for task in ("topic", "intent")}
    sizes = Sizes(width=16, inner=16, heads=2, head_width=8)
    first, second = (
        pretrain(data, tmp_path / name, Options(3, 1e-3, batch_size=8), sizes) for name in "ab"
    )
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["shared.weight"], one["lm_head.weight"])
    assert json.loads((first / "config.json").read_text())["tie_word_embeddings"] is False
    ids = AutoTokenizer.from_pretrained(first)("topic of the words : atom .")["input_ids"]
    assert ids[-1] == 1
    assert 2 not in ids


def test_a_pool_is_found_when_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"text pool is not built; run `sweeps quickstart --text`"):
        resolve("embedded:text/base", what="pool.base")
    small = Recipe(train=60, test=40, known=40, pretraining_steps=2, steps=1)
    pool = build(recipe=small)
    assert pool.root == default_root(0, TEXT)
    assert locate(kind=TEXT) == pool
    assert resolve("embedded:text/base", what="pool.base") == pool.base
    assert resolve("embedded:text/larger", what="pool.experts") == pool.experts["larger"]
    folder, _ = resolve_data("embedded:text/larger", what="task")
    assert folder == pool.data["larger"]
    table = pq.read_table(folder / "test.parquet")
    assert len(table) == 40
    assert np.bincount(table["label"].to_numpy()).min() >= 2
    with pytest.raises(InputError, match="made otherwise"):
        build()
    with pytest.raises(InputError, match="no such task in the embedded pool"):
        resolve("embedded:text/letters", what="pool.experts")
