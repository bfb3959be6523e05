"""The pretended device itself: it refuses what CUDA refuses, and computes what the CPU computes."""

import numpy as np
import pytest
import torch

from tests.pretend.device import Mixed, on_gpu, on_host, pretending

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
