"""Heads by hand and against float64; the loss of a batch of several tasks."""

from __future__ import annotations

import math

import pytest
import torch

from fusion.logits import cosine_head
from fusion.logits.entropy import entropy
from fusion.logits.head import (
    AnswerHead,
    CosineHead,
    Head,
    LinearHead,
    TaskLoss,
    VerbaliserHead,
    as_head,
)
from tests.fusion.draws import drawn

HEADS: dict[str, Head] = {
    "cosine": CosineHead(drawn(3, 5)),
    "linear": LinearHead(drawn(3, 5), drawn(3, seed=1)),
    "no bias": LinearHead(drawn(3, 5)),
    "dense layer before": LinearHead(drawn(3, 4), drawn(3), LinearHead(drawn(4, 5), drawn(4))),
    "words": VerbaliserHead(torch.tensor([4, 0, 2])),
}


ANSWERS = torch.tensor([[5, 6, 1], [7, 1, -1]])


def test_by_hand() -> None:
    z = torch.tensor([[3.0, 4.0]])
    found = CosineHead(torch.tensor([[10.0, 0.0], [0.0, 5.0]])).logits(z)
    torch.testing.assert_close(found, torch.tensor([[6.0, 4.0]]))
    found = LinearHead(torch.tensor([[1.0, 0.0], [2.0, -1.0]]), torch.tensor([0.5, 0.0])).logits(z)
    assert found.tolist() == [[3.5, 2.0]]
    before = LinearHead(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0]))
    assert LinearHead(torch.tensor([[2.0]]), torch.tensor([0.5]), before).logits(z).tolist() == [
        [0.5]
    ]
    assert VerbaliserHead(torch.tensor([1, 1, 0])).logits(z).tolist() == [[4.0, 4.0, 3.0]]


@pytest.mark.parametrize("name", HEADS)
def test_shapes_float64_and_gradients(name: str) -> None:
    head, z = HEADS[name], drawn(4, 5, seed=2)
    assert head.classes == 3
    wide = head.to(torch.float64).logits(z.double())
    assert (wide.shape, wide.dtype) == ((4, 3), torch.float64)
    torch.testing.assert_close(head.logits(z).double(), wide, rtol=1e-5, atol=1e-6)
    assert head.to(torch.device("cpu")).classes == 3
    leaf = z.double().requires_grad_()
    assert torch.autograd.gradcheck(head.to(torch.float64).logits, (leaf,))


def test_a_cosine_head_has_the_bits_of_its_function_and_ignores_lengths() -> None:
    head, z = drawn(3, 5), drawn(4, 5, seed=2)
    assert torch.equal(as_head(head).logits(z), cosine_head.logits(z, head))
    torch.testing.assert_close(CosineHead(head).logits(7 * z), CosineHead(head).logits(z))
    linear = LinearHead(head)
    assert as_head(linear) is linear


def test_token_ids_keep_their_dtype() -> None:
    assert VerbaliserHead(torch.tensor([1, 0])).to(torch.float16).tokens.dtype == torch.int64


def test_entropies_are_of_logits_but_where_the_output_holds_one() -> None:
    z = drawn(4, 5, seed=2)
    for head in HEADS.values():
        assert torch.equal(head.entropy(z), entropy(head.logits(z)))
    output = torch.tensor([[0.5, 1.0, -3.0, -1.0, 9.0], [0.25, -1.0, -1.0, -2.0, 9.0]])
    head = AnswerHead(ANSWERS)
    assert head.entropy(output).tolist() == [0.5, 0.25]
    assert head.logits(output).tolist() == [[-3.0, -1.0], [-1.0, -2.0]]
    assert head.written(output).tolist() == [1, -1]
    assert (head.classes, head.end) == (2, 1)
    ours = AnswerHead(ANSWERS, objective="answers").entropy(output)
    assert torch.equal(ours, entropy(output[:, 2:4]))
    assert head.to(torch.float64) is head


def test_losses_of_answers_are_the_entropy_of_their_first_token() -> None:
    output = drawn(3, 4, seed=4).requires_grad_()
    found = TaskLoss({"a": AnswerHead(ANSWERS)})(output, [("a", 3)])
    assert found.tolist() == [output[:, 0].mean().item()]
    found.sum().backward()
    assert output.grad is not None
    assert output.grad.tolist() == [[pytest.approx(1 / 3), 0, 0, 0]] * 3
    labelled = TaskLoss({"a": AnswerHead(ANSWERS)})(output, [("a", 3)], torch.tensor([0, 1, 1]))
    wanted = torch.nn.functional.cross_entropy(output[:, 2:], torch.tensor([0, 1, 1]))
    assert labelled.tolist() == [wanted.item()]


def test_losses_of_several_tasks() -> None:
    heads: dict[str, Head] = {"a": HEADS["linear"], "b": CosineHead(drawn(2, 5, seed=3))}
    z, labels = drawn(5, 5, seed=4), torch.tensor([2, 0, 1, 0, 1])
    parts = [("a", 2), ("b", 3)]
    found = TaskLoss(heads)(z, parts)
    wanted = [entropy(heads["a"].logits(z[:2])).mean(), entropy(heads["b"].logits(z[2:])).mean()]
    assert torch.equal(found, torch.stack(wanted))
    found = TaskLoss(heads)(z, parts, labels, 2.0)
    for at, (task, rows) in enumerate((("a", slice(0, 2)), ("b", slice(2, 5)))):
        logs = (2.0 * heads[task].logits(z[rows])).double().log_softmax(1)
        wanted_loss = -logs[torch.arange(len(logs)), labels[rows]].mean()
        assert float(found[at]) == pytest.approx(float(wanted_loss), rel=1e-5)


def test_the_gradient_of_beta() -> None:
    heads: dict[str, Head] = {"a": LinearHead(torch.tensor([[1.0], [0.0]]))}
    beta = torch.tensor(1.0, requires_grad=True)
    z, labels = torch.tensor([[math.log(3.0)]]), torch.tensor([0])
    TaskLoss(heads)(z, [("a", 1)], labels, beta).sum().backward()
    # p = (¾, ¼); ∂/∂β −ln p₀ = −(1 − p₀)·ln 3.
    assert float(beta.grad or 0.0) == pytest.approx(-0.25 * math.log(3.0))
