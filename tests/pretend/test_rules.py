"""The pretended device itself: it refuses what CUDA refuses, and computes what the CPU computes."""

import numpy as np
import pytest
import torch

from tests.pretend.device import Mixed, on_gpu, on_host, pretending, shapes_only

REFUSED = {
    "two devices": lambda g, c: g + c,
    "a product": lambda g, c: g @ c,
    "written to": lambda g, c: c.add_(g),
    "a scalar of a product": lambda g, c: torch.stack([g[0, 0], c[0, 0]]),
    "an index": lambda g, c: c[g.long()],
    "values": lambda g, c: g.index_put_((torch.tensor([0, 1]),), c[:2]),
    "numpy": lambda g, c: g.numpy(),
    "an array": lambda g, c: np.asarray(g),
    "random numbers": lambda g, c: torch.rand(3, device="cuda"),
    "a permutation": lambda g, c: torch.randperm(3, device="cuda"),
    "drawn in place": lambda g, c: g.clone().normal_(),
    "a generator of its own": lambda g, c: torch.rand(3, generator=torch.Generator("cuda")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses(what):
    cpu = torch.zeros(3, 3)
    with pretending(), pytest.raises((Mixed, RuntimeError, TypeError)):
        REFUSED[what](on_gpu(torch.zeros(3, 3)), cpu)


ALLOWED = {
    "a number on the CPU": (lambda g, c, at: g * c[0, 0], 0),
    "an index on the CPU": (lambda g, c, at: g[torch.tensor([0, 1])], 1),
    "to the host": (lambda g, c, at: g.cpu(), 1),
    "to the device": (lambda g, c, at: c.to(at), 1),
    "into the device's": (lambda g, c, at: g.clone().copy_(c), 1),
    "item": (lambda g, c, at: torch.tensor(g.sum().item()), 1),
    "a condition": (lambda g, c, at: torch.tensor(bool(g.sum() > 0)), 1),
    "tolist": (lambda g, c, at: torch.tensor(g.tolist()), 1),
    "made there": (lambda g, c, at: torch.ones(3, device=at) + g, 0),
    "a mask": (lambda g, c, at: g[g > 1], 1),
    "in place": (lambda g, c, at: g.clone().mul_(2).add_(g), 0),
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_cuda_does_and_where_the_host_waits(what):
    call, waits = ALLOWED[what]
    values = torch.arange(9.0).view(3, 3)
    with pretending() as noted:
        found = call(on_gpu(values.clone()), values + 1, "cuda")
    assert noted.syncs == waits, noted.waits
    assert torch.equal(on_host(found), call(values.clone(), values + 1, "cpu"))


def test_autograd_runs_there():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(3, 2)
    with pretending():
        w = on_gpu(layer.weight.detach()).requires_grad_()
        loss = torch.nn.functional.gelu(on_gpu(x) @ w.T).square().sum()
        loss.backward()
    layer.weight.grad = None
    torch.nn.functional.gelu(x @ layer.weight.T).square().sum().backward()
    assert w.grad.device.type == "cuda"
    torch.testing.assert_close(on_host(w.grad), layer.weight.grad)


def test_kernels_their_bytes_and_flops_are_counted():
    a, b = on_gpu(torch.ones(4, 8)), on_gpu(torch.ones(8, 2))
    with pretending() as noted:
        torch.empty(3, device="cuda")
        a.T.reshape(8, 4)
        assert (noted.launches, noted.moved) == (0, 0)
        found = a @ b
        assert (noted.launches, noted.flops) == (1, 2 * 4 * 8 * 2)
        assert noted.moved == 4 * (32 + 16 + 8)
        found.add_(1)
        assert (noted.launches, noted.moved) == (2, 4 * (32 + 16 + 8) + 2 * 4 * 8)
        a[:, :1].expand(4, 8) + 1
        assert noted.moved == 4 * (32 + 16 + 8) + 2 * 4 * 8 + 4 * (4 + 32)


def test_memory_of_views_counts_once_and_is_given_back():
    with pretending() as noted:
        start = noted.live
        a = torch.zeros(100, device="cuda")
        views = [a[:50], a.view(10, 10)]
        assert noted.live - start == 400
        del a
        assert noted.live - start == 400
        del views
        assert noted.live - start == 0
        assert noted.peak - start == 400


def test_shapes_without_values():
    with pretending() as noted, shapes_only():
        a = torch.empty(30, 20, device="cuda", requires_grad=True)
        loss = (torch.ones(5, 30).to("cuda") @ a).square().sum()
        loss.backward()
        assert a.grad.shape == (30, 20)
        assert a.grad.real.device.type == "meta"
        assert loss.item() == 1.0
        assert a.detach()[0].tolist() == [1.0] * 20
        assert torch.equal(a.detach().cpu(), torch.ones(30, 20))
    assert noted.syncs == 4
    assert noted.flops == 2 * 2 * 5 * 30 * 20
