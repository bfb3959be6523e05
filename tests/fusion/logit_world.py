"""A synthetic task for classifiers on fixed embeddings."""

from typing import ClassVar

import torch

from fusion.logits.cosine_head import logits
from fusion.logits.head import CosineHead
from fusion.methods.classifiers.interface import MERGED, TaskEmbeddings
from fusion.registry import METHODS

D, C, EXPERTS = 12, 3, ("a", "b")


class World:
    """Three classes in 12 dimensions, seen by a base and two experts, one better than the other."""

    noise: ClassVar = {"pretrained": 1.1, "a": 0.9, "b": 0.5}

    def __init__(self, sizes=(60, 45, 45)):
        rng = torch.Generator().manual_seed(0)
        self.centres = torch.randn(C, D, generator=rng)
        self.head = 10 * torch.nn.functional.normalize(
            self.centres + 0.8 * torch.randn(C, D, generator=rng), dim=1
        )
        self.labels = {
            role: torch.arange(n) % C
            for role, n in zip(("fit", "select", "report"), sizes, strict=True)
        }
        self.z = {
            (source, role): self.centres[y] + noise * torch.randn(len(y), D, generator=rng)
            for role, y in self.labels.items()
            for source, noise in self.noise.items()
        }
        self.z |= {  # halfway between base and the better expert
            (MERGED, role): (self.z["pretrained", role] + self.z["b", role]) / 2
            for role in self.labels
        }
        self.read = set()

    @property
    def data(self):
        def labels(role):
            self.read.add(role)
            return self.labels[role]

        def embedded(source, role, at):
            self.read.add(role)
            z = self.z[source, role]
            return z if at is None else z[at]

        return TaskEmbeddings(EXPERTS, CosineHead(self.head), labels, embedded, "b")

    def logits(self, name, kept, role, **params):
        row = METHODS[name]
        head = self.data.head
        return row.logits(lambda s: self.z[s, role], head, kept, EXPERTS, **params)

    def accuracy(self, z, role):
        return float((z.argmax(1) == self.labels[role]).float().mean())

    def zero_shot(self, role, source="pretrained"):
        return self.accuracy(logits(self.z[source, role], self.head), role)
