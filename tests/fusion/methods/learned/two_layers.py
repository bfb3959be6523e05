"""A model of two matrices, mixed from ingredients, whose gradients are inner products."""

import torch
from torch.nn.functional import cross_entropy

from fusion.methods.learned.steps import Gradient

K, C, D = 3, 4, 6
GROUPS = ("encoder.layers.0.w", "encoder.layers.1.w")


class Toy:
    """z = (x·W₀)·W₁ with both matrices mixed from ingredients, in float64."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.base = [torch.randn(D, D, generator=rng).double() for _ in range(2)]
        self.deltas = [0.3 * torch.randn(K, D, D, generator=rng).double() for _ in range(2)]
        self.x = torch.randn(20, D, generator=rng).double()
        self.y = torch.randint(0, C, (20,), generator=rng)

    def weights(self, coding: torch.Tensor) -> list[torch.Tensor]:
        """The merged matrices of a coding [1, T, G]."""
        column = coding[0].expand(K, 2).double()
        return [
            self.base[g] + torch.einsum("t,tij->ij", column[:, g], self.deltas[g]) for g in (0, 1)
        ]

    def loss(self, coding: torch.Tensor, beta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy at inverse temperature β."""
        first, second = self.weights(coding)
        return cross_entropy(beta * (self.x[rows] @ first @ second)[:, :C], self.y[rows])

    def compute_gradients(self, given):
        """∂L/∂coding by inner products with task vectors, one gradient of the merged model."""
        found = []
        for micro_batch in given:
            (rows,) = micro_batch.rows.values()
            matrices = [m.detach().requires_grad_() for m in self.weights(micro_batch.coding)]
            beta = micro_batch.beta.double().detach().requires_grad_()
            z = (self.x[rows] @ matrices[0] @ matrices[1])[:, :C]
            loss = cross_entropy(beta * z, self.y[rows])
            loss.backward()
            columns = [torch.einsum("ij,tij->t", matrices[g].grad, self.deltas[g]) for g in (0, 1)]
            coding = torch.stack(columns, 1)[None]
            if micro_batch.coding.shape[2] == 1:
                coding = coding.sum(2, keepdim=True)
            (task,) = micro_batch.rows
            found.append(Gradient({task: loss.item()}, coding, beta.grad.item()))
        return found
