"""Learned soups on a toy with two tensors: the streamed gradient is autograd's."""

import pytest
import torch

from fusion.errors import InputError
from fusion.methods.learned.learned_soup import Shares, learned_soup, parts_of
from fusion.methods.learned.steps import Shape, learn_step, micro_batches
from tests.fusion.methods.learned.two_layers import GROUPS, K, Toy


@pytest.mark.parametrize("granularity", ["global", "block", "tensor"])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_the_streamed_gradient_is_autograds(granularity, entropy_weight) -> None:
    toy = Toy()
    learning = learned_soup(
        Shape(("a", "b", "c"), GROUPS),
        granularity=granularity,
        entropy_weight=entropy_weight,
        batch_size=20,
    )
    router = learning.router
    assert isinstance(router, Shares)
    with torch.no_grad():
        router.raw.copy_(torch.randn(router.raw.shape, generator=torch.Generator().manual_seed(1)))
        router.log_beta.fill_(0.3)
    given = micro_batches(learning, {"t": 20}, {}, 0, 0)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.0)
    learn_step(learning, optimizer, given, toy.compute_gradients, 0)
    found = [router.raw.grad.clone(), router.log_beta.grad.clone()]
    optimizer.zero_grad()
    coding = router(None)
    whole = toy.loss(coding, router.beta(), given[0].rows["t"])
    if entropy_weight:
        whole = whole + entropy_weight * torch.xlogy(coding, coding).sum(1).mean()
    whole.backward()
    torch.testing.assert_close(found[0], router.raw.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], router.log_beta.grad, rtol=1e-4, atol=1e-6)


def test_learning_lowers_the_loss_and_starts_at_the_uniform_soup() -> None:
    toy = Toy()
    learning = learned_soup(Shape(("a", "b", "c"), GROUPS), batch_size=20)
    start = learning.router(None)
    torch.testing.assert_close(start, torch.full((1, K, 2), 1 / K))
    optimizer = torch.optim.Adam(learning.router.parameters(), lr=learning.learning_rate)
    losses = [
        learn_step(
            learning,
            optimizer,
            micro_batches(learning, {"t": 20}, {}, step, 0),
            toy.compute_gradients,
            step,
        )["t"]
        for step in range(60)
    ]
    assert losses[-1] < 0.9 * losses[0]
    coding = learning.router(None)
    torch.testing.assert_close(coding.sum(1), torch.ones(1, 2))


def test_beta_stays_one_where_it_is_not_learned() -> None:
    learning = learned_soup(Shape(("a", "b", "c"), GROUPS), temperature=False, batch_size=20)
    optimizer = torch.optim.Adam(learning.router.parameters(), lr=0.1)
    learn_step(
        learning,
        optimizer,
        micro_batches(learning, {"t": 20}, {}, 0, 0),
        Toy().compute_gradients,
        0,
    )
    assert learning.router.beta().item() == 1.0


def test_parts_of_a_model() -> None:
    groups = ["pre", "encoder.layers.0.a", "encoder.layers.10.a", "encoder.layers.0.b", "post"]
    assert parts_of(groups, "block") == [0, 1, 2, 1, 0]
    assert parts_of(groups, "tensor") == [0, 1, 2, 3, 4]
    assert parts_of(groups, "global") == [0] * 5


def test_labels_of_the_report_split_are_never_learned_from() -> None:
    from fusion.registry import METHODS

    with pytest.raises(InputError, match="adapt_on: 'report'; one of 'fit', 'select' allowed"):
        METHODS["learned_soup"].plan(Shape(("a",), GROUPS), adapt_on="report")
