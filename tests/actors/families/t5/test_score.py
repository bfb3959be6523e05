"""Answers scored in one pass over their tree: by hand, and against `transformers`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actors.data.text.answers import answer_tree
from actors.families.t5 import score
from actors.families.t5.segments import t5_segments
from actors.shards.resident_model import Blueprint, ResidentModel
from fusion.logits.head import AnswerHead
from tests.actors.families.t5.models import (
    ANSWERS,
    INPUTS,
    KINDS,
    DrawnRows,
    V,
    library,
    opened,
    vectors_of,
    write_model,
)

ROWS = 8


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp(request.param) / "base", request.param, seed=4)


def encoder_of(base):
    plan = Blueprint(t5_segments(base), INPUTS, vectors_of(base, [base], torch.float32).base)
    return ResidentModel(plan)


def collated(answers, task="many"):
    part = DrawnRows(task).take(torch.arange(ROWS)) | {"answers": answers[None]}
    return INPUTS.collate([part])


def test_by_hand():
    """Node 0 makes token 1 the likelier of two; node 1, after it, token 0."""
    hidden = torch.tensor([[[1.0, 3.0], [2.0, 0.0]]])
    answers = torch.tensor([[[1, 0], [0, -1], [-1, -1]]])
    prefixes = torch.tensor([[[0, 1], [0, 0], [0, 0]]])
    (found,) = score.scores(hidden, nn.Identity(), 2, answers, prefixes)
    first, second = hidden[0].log_softmax(-1)
    wanted = [-(first.exp() * first).sum(), 0, first[1] + second[0], first[0], score.LOWEST]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_nothing_is_written_where_the_path_leaves_the_answers():
    hidden = torch.tensor([[[0.0, 0.0, 9.0], [5.0, 0.0, 0.0]]])
    answers, prefixes = torch.tensor([[[1, 0], [0, -1]]]), torch.tensor([[[0, 1], [0, 0]]])
    found = score.scores(hidden, nn.Identity(), 3, answers, prefixes)
    assert AnswerHead(answers[0]).written(found).tolist() == [-1]


def test_nodes_in_parts_give_the_same(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    tree = answer_tree(ANSWERS["many"], 0)
    hidden = torch.randn(2, len(tree.nodes), V, generator=draw)
    given = [t.expand(2, -1, -1) for t in (tree.answers, tree.prefixes)]
    whole = score.scores(hidden, nn.Identity(), V, *given)
    monkeypatch.setattr(score, "LOGITS", 2 * V)
    assert torch.equal(score.scores(hidden, nn.Identity(), V, *given), whole)


@pytest.mark.parametrize("task", ANSWERS)
def test_scores_are_teacher_forced_log_likelihoods(task, folder):
    answers, given = ANSWERS[task], collated(ANSWERS[task], task)
    found = encoder_of(opened(folder)).outputs(given)
    model = library(folder)
    for at, answer in enumerate(answers):
        tokens = answer[answer >= 0]
        with torch.inference_mode():
            z = model(
                input_ids=given["ids"],
                attention_mask=given["mask"].long(),
                labels=tokens.repeat(ROWS, 1),
            ).logits
        logs = z.log_softmax(-1)
        wanted = logs[:, range(len(tokens)), tokens].sum(1)
        torch.testing.assert_close(found[:, 2 + at], wanted, rtol=1e-5, atol=1e-5)
        wanted = -(logs.exp() * logs).sum(-1)[:, 0]
        torch.testing.assert_close(found[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_the_written_class_is_that_of_generate(folder):
    """Answers are what the model writes for some rows, and one that it does not write."""
    from transformers import GenerationConfig

    given, model = collated(ANSWERS["many"]), library(folder)
    how = GenerationConfig(
        max_new_tokens=4, do_sample=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
    )
    with torch.inference_mode():
        texts = model.generate(given["ids"], attention_mask=given["mask"].long(),
                               generation_config=how)[:, 1:]  # fmt: skip
    ended = [row[: row.tolist().index(1) + 1].tolist() for row in texts if 1 in row.tolist()]
    ended = [list(each) for each in dict.fromkeys(map(tuple, ended))]
    cut = [[*row.tolist()[:3], 1] for row in texts if 1 not in row.tolist()][:1]
    classes = [*ended, *cut, [39, 1]]
    answers = torch.full((len(classes), 4), -1)
    for row, tokens in zip(answers, classes, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    written = AnswerHead(answers).written(encoder_of(opened(folder)).outputs(collated(answers)))
    wanted = []
    for row in texts.tolist():
        tokens = row[: row.index(1) + 1] if 1 in row else row
        wanted.append(classes.index(tokens) if tokens in classes else -1)
    assert written.tolist() == wanted
