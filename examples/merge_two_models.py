"""Merge two fine-tuned models: modules in memory, state dicts, and model folders.

    python examples/merge_two_models.py

Part 1 trains a base and two experts on scikit-learn's digits, in seconds. Part 2 merges two experts
of the small CLIP of `make demo`, which is made on this machine, once, in about a minute.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import CLIPModel

import fusion
import sweeps
from actors.embedded import EmbeddedPool, build

Data = tuple[Tensor, Tensor]
"""Images [N, 64] and labels [N]."""


def in_memory() -> dict[str, float]:
    """Merge modules and state dicts.

    Returns:
        Model -> accuracy on test images of all ten digits.
    """
    train, test = digits()
    base = fitted(network(), (train[0][:100], train[1][:100]), steps=30)
    experts = {
        "low": fitted(base, of_classes(train, range(5)), steps=60),
        "high": fitted(base, of_classes(train, range(5, 10)), steps=60),
    }

    # Of modules, the result is a copy of the base with merged weights.
    average = fusion.merge("simple_average", base, experts)
    ties = fusion.merge("ties", base, experts, density=0.3, scale=1.0)

    # Of state dicts, it is a state dict.
    states = {name: expert.state_dict() for name, expert in experts.items()}
    weights = fusion.merge("simple_average", base.state_dict(), states)
    assert all(torch.equal(weights[name], average.state_dict()[name]) for name in weights)

    # Hyper-parameters are checked before anything is computed.
    try:
        fusion.merge("ties", base, experts, density=2.0)
    except fusion.InputError as error:
        print("refused:", error)

    models = {"base": base, **experts, "simple average": average, "TIES": ties}
    return {name: accuracy(model, test) for name, model in models.items()}


def of_folders(pool: EmbeddedPool, out: Path) -> CLIPModel:
    """Merge model folders, or hub ids, into one that `transformers` loads.

    Args:
        pool: folders of a base and its experts.
        out: a new folder for the merged model.
    """
    experts = {name: pool.experts[name] for name in list(pool.experts)[:2]}

    # A state dict with all tensors of the base.
    weights = fusion.merge("task_arithmetic", pool.base, experts, scale=0.5)
    print(f"merged {', '.join(experts)}: {sum(t.numel() for t in weights.values()):,} parameters")

    # A folder with weights, tokenizer, recipe and model card. Experts stay in their files.
    print("written:", sweeps.merge("task_arithmetic", pool.base, experts, out, scale=0.5))
    model = CLIPModel.from_pretrained(out)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    return model


def digits() -> tuple[Data, Data]:
    """Train and test images of handwritten digits; every third image is for testing."""
    found = load_digits()
    images, labels = torch.tensor(found.data / 16.0).float(), torch.tensor(found.target)
    test = torch.arange(len(labels)) % 3 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def of_classes(data: Data, classes: range) -> Data:
    """The images of some of the digits."""
    images, labels = data
    chosen = torch.isin(labels, torch.tensor(classes))
    return images[chosen], labels[chosen]


def network() -> nn.Sequential:
    """An untrained classifier of ten digits; always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def fitted(start: nn.Sequential, data: Data, steps: int) -> nn.Sequential:
    """A copy of a network, trained on some images."""
    model = network()
    model.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(data[0]), data[1]))
        optimizer.step()
    return model


def accuracy(model: nn.Module, data: Data) -> float:
    """Share of images whose class is found."""
    right: Tensor = model(data[0]).argmax(-1) == data[1]
    return right.float().mean().item()


if __name__ == "__main__":
    for name, score in in_memory().items():
        print(f"{name:15} {score:.3f}")
    of_folders(build(), Path("outputs/merged"))
