"""wemoe and ewemoe: routers by hand, routed MLPs against one model a sample in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fusion.merged_layers.modules import Mixer, merge_layers
from fusion.methods.learned.steps import Shape
from fusion.methods.learned.wemoe import RoutedMlp, Router
from fusion.registry import METHODS
from fusion.task_vectors.sparse import largest, pruned
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion.draws import drawn_as_double as drawn

SHAPE = Shape(("a", "b", "c"), ())
WIDTH, HIDDEN, TASKS = 6, 10, 3


def test_a_router_by_hand():
    router = Router(2, 1, 2, 0.3)
    with torch.no_grad():
        router.weights[0].copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        router.weights[1].copy_(torch.tensor([[2.0, 3.0]]))
    hidden = torch.tensor([[[1.0, 1.0], [-1.0, -2.0]]])  # relu: (1, 0) and (0, 2)
    # (2·1 + 0.3 + 3·2 + 0.3) / 2
    assert router(hidden).item() == pytest.approx(4.3)


def test_the_mean_before_the_last_layer_is_the_mean_after_it():
    for depth in (1, 2):
        router = Router(WIDTH, TASKS, depth, 0.3, seed=2, dtype=torch.float64)
        with torch.no_grad():
            for p in router.parameters():
                p.add_(drawn(*p.shape))
        hidden = drawn(4, 5, WIDTH)
        out = hidden
        if depth == 2:
            out = (out @ router.weights[0].T + router.biases[0]).relu()
        wanted = (out @ router.weights[-1].T + router.biases[-1]).mean(1)
        torch.testing.assert_close(router(hidden), wanted)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_routers_at_the_start(depth):
    router = Router(400, TASKS, depth, 0.25, seed=1)
    assert len(router.weights) == depth
    for weight in router.weights:
        assert weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert bool((router.biases[-1] == 0.25).all())
    if depth == 2:
        assert not bool(router.biases[0].any())
    near = router(torch.randn(2, 7, 400, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(
        near, torch.full((2, TASKS), 0.25), rtol=0, atol=0 if depth == 0 else 0.3
    )
    again = Router(400, TASKS, depth, 0.25, seed=1).state_dict()
    assert all(torch.equal(again[k], v) for k, v in router.state_dict().items())


def mlp_and_vectors():
    mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)).double()
    base = {name: drawn(*p.shape, seed=1) for name, p in mlp.named_parameters()}
    experts = {
        task: {n: v + 0.3 * drawn(*v.shape, seed=7 + i) for n, v in base.items()}
        for i, task in enumerate(SHAPE.tasks)
    }
    return mlp, TaskVectors.from_state_dicts(base, experts)


def routed(mlp, vectors, router, pooled):
    mixer, names = Mixer(vectors), list(vectors.base)
    fresh = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))
    merged = merge_layers(fresh, mixer, {name: name for name in names})
    return RoutedMlp(merged, router, mixer, names, pooled)


@pytest.mark.parametrize("prune", [None, 0.6])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_routed_mlp_is_one_mlp_a_sample(pooled, prune):
    mlp, vectors = mlp_and_vectors()
    router = Router(WIDTH, TASKS, 2, 0.3, seed=3, dtype=torch.float64)
    with torch.no_grad():
        for p in router.parameters():
            p.add_(0.5 * drawn(*p.shape, seed=5))
    kept = vectors if prune is None else pruned(vectors, list(vectors.base), prune)
    deltas = {
        name: delta if prune is None else largest(delta, prune).dense()
        for name, delta in vectors.deltas.items()
    }
    x = drawn(4, 5, WIDTH, seed=9)
    weight = drawn(4, 5, WIDTH, seed=10)
    ours = x.clone().requires_grad_()
    out = routed(mlp, kept, router, pooled)(ours)
    (out * weight).sum().backward()
    found = {name: p.grad.clone() for name, p in router.named_parameters()}
    router.zero_grad()

    theirs = x.clone().requires_grad_()
    g = router(theirs)
    g = g.mean(0, keepdim=True).expand(4, -1) if pooled else g
    rows = []
    for i in range(4):
        tensors = {
            name: vectors.base[name] + torch.tensordot(g[i], deltas[name], dims=1)
            for name in vectors.base
        }
        rows.append(functional_call(mlp, tensors, (theirs[i],)))
    wanted = torch.stack(rows)
    torch.testing.assert_close(out, wanted)
    (wanted * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, p in router.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_batches_of_the_course():
    assert METHODS["wemoe"].plan(SHAPE).options.together == 0
    assert METHODS["wemoe"].plan(SHAPE, routing="batch").options.together == 128
    found = METHODS["ewemoe"].plan(SHAPE).options
    assert (found.prune, found.shared, found.depth) == (0.9, True, 2)
