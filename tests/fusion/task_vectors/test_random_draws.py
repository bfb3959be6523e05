"""Stateless random numbers: SplitMix64 as published, uniform, and the same however they are cut."""

import pytest
import torch
from scipy import stats

from fusion.methods.learned.concrete import drawn, mask_of
from fusion.methods.learned.in_model import MaskOptions
from fusion.task_vectors import random_draws
from fusion.task_vectors.random_draws import bernoulli, key_of, splitmix, uniform
from tests.fusion.draws import MASK, published


def unsigned(words: torch.Tensor) -> list[int]:
    return [word & MASK for word in words.tolist()]


def test_the_published_sequence():
    # The five numbers that are published for this seed.
    assert unsigned(splitmix(1234567, 0, 5)) == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1, key_of(3, "drawn 0 w")])
def test_any_key_from_any_place(key):
    wanted = published(key, 1000)
    assert unsigned(splitmix(key, 0, 1000)) == wanted
    assert unsigned(splitmix(key, 400, 17)) == wanted[400:417]


def test_numbers_are_halves_of_words():
    words = published(7, 3)
    halves = [part for word in words for part in (word & 0xFFFFFFFF, word >> 32)]
    # The upper 23 bits of each half, as a signed number, from −2²² up.
    signed = [(half - 2**32 if half >= 2**31 else half) >> 9 for half in halves]
    wanted = [(number + 2**22 + 0.5) / 2**23 for number in signed]
    assert uniform((2, 3), 7).flatten().tolist() == wanted
    assert uniform((5,), 7).tolist() == wanted[:5]


def test_neither_zero_nor_one_and_no_rounding(monkeypatch):
    ends = torch.tensor([0x7FFFFFFF80000000], dtype=torch.int64)
    monkeypatch.setattr(random_draws, "splitmix", lambda *args: ends.clone())
    least, most = uniform((2,), 0).tolist()
    assert least == 2**-24
    assert most == 1 - 2**-24
    assert uniform((2,), 0, dtype=torch.float64).tolist() == [least, most]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4097])
def test_the_size_of_a_piece_is_of_no_matter(size, monkeypatch):
    whole = uniform((size,), 5)
    for words in (1, 3, 64):
        monkeypatch.setattr(random_draws, "WORDS", words)
        assert torch.equal(uniform((size,), 5), whole)
    assert torch.equal(uniform((max(size - 1, 0),), 5), whole[: max(size - 1, 0)])


@pytest.mark.parametrize("size", [1, 5, 130])
def test_a_random_mask_is_the_same_however_it_is_cut(size):
    keys = [key_of("a"), key_of("b"), 2**64 - 1]
    whole = bernoulli(keys, 0.3, slice(0, size))
    for at, key in enumerate(keys):
        assert torch.equal(bernoulli([key], 0.3, slice(0, size))[0], whole[at])
    for start in range(0, size, 2):
        part = bernoulli(keys, 0.3, slice(start, size), dtype=torch.float64)
        assert torch.equal(part, whole[:, start:].double())


def test_a_random_mask_has_its_density():
    size = 1 << 20
    for density in (1e-3, 0.1, 0.5, 0.999):
        ones = float(bernoulli([7], density, slice(0, size)).sum())
        assert abs(ones - size * density) < 5 * (size * density * (1 - density)) ** 0.5
    assert not bernoulli([7], 1e-12, slice(0, size)).any()
    assert float(bernoulli([7], 1 - 1e-12, slice(0, size)).sum()) >= size - 1
    low, high = (bernoulli([7], density, slice(0, 1000)) for density in (0.2, 0.6))
    assert bool((low <= high).all())


def test_uniform_independent_and_other_for_other_keys():
    size = 1 << 20
    first, second = (uniform((size,), key_of(0, f"drawn {step} w")).double() for step in (0, 1))
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3
    bins = torch.bincount((first * 1024).long(), minlength=1024)
    assert stats.chisquare(bins.numpy()).pvalue > 1e-3
    # Neighbours, the two halves of a word, and the same place at another step.
    for a, b in ((first[:-1], first[1:]), (first[::2], first[1::2]), (first, second)):
        pairs = (a * 32).long() * 32 + (b * 32).long()
        assert stats.chisquare(torch.bincount(pairs, minlength=1024).numpy()).pvalue > 1e-3
    # Each of the 23 bits is 1 in half of the numbers.
    number = ((first * 2**24).long() - 1) // 2
    shares = torch.stack([(number >> bit & 1).double().mean() for bit in range(23)])
    assert float((shares - 0.5).abs().max()) < 5 * 0.5 / size**0.5


def test_a_mask_is_drawn_alike_in_every_dtype():
    like = torch.zeros(1000)
    assert torch.equal(drawn(like, 3, "0 w").double(), drawn(like.double(), 3, "0 w"))


def test_a_discrete_mask_keeps_each_entry_with_its_probability():
    logits = torch.linspace(-3, 3, 1 << 18)
    mask = mask_of(logits, MaskOptions(0.0, 0.5, "discrete", 1), "w")
    p = logits.double().sigmoid()
    error = float((mask.double() - p).sum() / (p * (1 - p)).sum().sqrt())
    assert abs(error) < 4
