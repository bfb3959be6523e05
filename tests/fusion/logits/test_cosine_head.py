"""Zero-shot heads and logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fusion.logits.cosine_head import logits, normalized, zero_shot_head

PROMPTS = [
    torch.randn(m, 6, generator=torch.Generator().manual_seed(m), dtype=torch.float64)
    for m in (1, 3, 7)
]


def test_rows_have_the_length_of_the_scale() -> None:
    head = zero_shot_head(PROMPTS, math.log(100))
    torch.testing.assert_close(head.norm(dim=-1), torch.full((3,), 100.0, dtype=torch.float64))


def test_one_prompt_is_its_embedding() -> None:
    head = zero_shot_head(PROMPTS[:1], torch.tensor(0.0))
    torch.testing.assert_close(head, normalize(PROMPTS[0], dim=-1))


def test_each_prompt_counts_the_same_whatever_its_length() -> None:
    lengths = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None]
    longer = [PROMPTS[0], PROMPTS[1] * lengths, PROMPTS[2]]
    torch.testing.assert_close(zero_shot_head(longer, 1.0), zero_shot_head(PROMPTS, 1.0))
    wrong = normalize((PROMPTS[1] * lengths).mean(0), dim=-1)
    assert not torch.allclose(zero_shot_head(longer, 0.0)[1], wrong)


def test_formula() -> None:
    rows = [normalize(normalize(prompts, dim=-1).mean(0), dim=-1) for prompts in PROMPTS]
    wanted = torch.stack(rows) * math.exp(2.0)
    torch.testing.assert_close(zero_shot_head(PROMPTS, 2.0), wanted)


def test_logits_are_cosines_times_the_scale() -> None:
    images = torch.randn(4, 6, dtype=torch.float64)
    head = zero_shot_head(PROMPTS, 0.0)
    cosines = torch.cosine_similarity(images[:, None], head[None], dim=-1)
    torch.testing.assert_close(logits(images, head), cosines)
    torch.testing.assert_close(logits(images * 7, head * 3), cosines * 3)


def test_small_embeddings_are_normalised_too() -> None:
    tiny = torch.tensor([[3e-20, 4e-20]], dtype=torch.float64)
    assert normalized(tiny)[0].tolist() == pytest.approx([0.6, 0.8])
