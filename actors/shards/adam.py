"""Adam on named tensors, with moments that are saved and loaded by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from actors.artifacts.in_model_state_file import MOMENTS
from fusion.errors import InputError


class NamedAdam:
    """Named parameters and torch's Adam on them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float) -> None:
        """`rate`: the learning rate; there is no weight decay."""
        self.parameters = dict(parameters)
        every = list(self.parameters.values())
        self.optimizer = torch.optim.Adam(every, lr=rate) if every else None

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Load parameters and moments of the state after `steps` steps.

        Raises:
            InputError: a missing tensor, or one of another shape.
        """
        for name, parameter in self.parameters.items():
            wanted = [name, *(f"{name}|{moment}" for moment in MOMENTS if steps)]
            for key in wanted:
                shape = list(tensors[key].shape) if key in tensors else "none"
                if shape != list(parameter.shape):
                    needed = list(parameter.shape)
                    raise InputError(f"learned: tensor {key!r}: {shape}; {needed} needed")
            parameter.copy_(tensors[name])
            if steps and self.optimizer is not None:
                moments = {
                    moment: tensors[f"{name}|{moment}"].to(parameter, copy=True)
                    for moment in MOMENTS
                }
                self.optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments."""
        found = {name: parameter.detach() for name, parameter in self.parameters.items()}
        if self.optimizer is not None:
            for name, parameter in self.parameters.items():
                for moment in MOMENTS:
                    if moment in self.optimizer.state[parameter]:
                        found[f"{name}|{moment}"] = self.optimizer.state[parameter][moment]
        return found

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step; gradients by name, zeros where there is none."""
        if self.optimizer is None:
            return
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            parameter.grad = (
                torch.zeros_like(parameter) if gradient is None else gradient.to(parameter)
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
