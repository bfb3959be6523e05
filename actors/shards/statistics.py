"""Statistics of data (Gram matrices, Fisher information), collected in a block while experts run.

They stay in memory until all batches of an expert were seen, then go to files. Batches are counted:
a shard that was restarted between two of them raises `Forgotten`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from actors.artifacts.errors import Forgotten
from actors.artifacts.statistics_file import opened, place, sound, write
from actors.families.protocol import OUTPUT, Activations
from actors.shards.block import Block
from actors.shards.messages import Batch, Weights
from fusion.kinds import MergeInputs
from fusion.methods.statistics.collect import Grams, Statistics
from fusion.methods.statistics.fisher import Squares
from fusion.registry import METHODS
from fusion.task_vectors.coding import mix, one_hot


class Gathering:
    """Collects the statistics of one expert at a time in one block."""

    def __init__(self, block: Block) -> None:
        """Nothing collected yet."""
        self.block, self.encoder, self.segments = block, block.encoder, block.segments
        self.under_way: tuple[str, int] = ("", 0)
        """The key that is gathered, and how many batches were seen."""
        self.grams: list[Grams] = []
        self.squares: Squares | None = None
        self.waiting: dict[str, tuple[Activations, Activations]] = {}

    def parts(self) -> Iterator[tuple[int, nn.Module, Mapping[str, str]]]:
        """Index, module and global names of each segment of the block."""
        for at, module, link in zip(
            self.segments, self.encoder.modules, self.encoder.chain, strict=True
        ):
            yield at, module, link.names

    def lacking(self, keys: Sequence[str]) -> list[str]:
        """Keys some of whose files of these segments this node does not have, or has damaged."""
        return [key for key in keys if not all(sound(self.place(key, at)) for at in self.segments)]

    def place(self, key: str, at: int) -> Path:
        """The file of one expert's statistics of one segment."""
        return place(key, at, self.block.statistics_root)

    def opened(self, keys: Sequence[str], segments: Sequence[int] | None = None) -> Statistics:
        """The statistics of this block, or of some of its segments."""
        return opened(
            keys, self.segments if segments is None else segments, self.block.statistics_root
        )

    def write(
        self, key: str, at: int, found: Mapping[str, Tensor], keys: Mapping[str, str]
    ) -> None:
        """One file, whole or not at all."""
        write(self.place(key, at), found, keys)

    # ------------------------------------------------------------------------------ Gram matrices

    def observe(self, at: int, carry: Activations | Batch, weights: Weights) -> Activations:
        """Batch `at` through the resident model, looking at what its linear layers are given.

        Raises:
            Forgotten: the batches before were not seen.
        """
        self.block.fill(weights)
        if not at:
            self.forget()
            self.grams = [
                Grams([(module, names)], self.block.vectors.deltas)
                for _, module, names in self.parts()
            ]
        self.count(weights.key, at)
        for grams in self.grams:
            grams.on = True
        outputs = self.block.entered(carry)
        try:
            with torch.inference_mode():
                for grams, (_, module, _) in zip(self.grams, self.parts(), strict=True):
                    grams.mask = outputs.get("mask")
                    outputs = module(outputs)
            return outputs
        finally:
            for grams in self.grams:
                grams.on = False

    def count(self, key: str, at: int) -> None:
        """Batch `at` is seen now; the first begins anew.

        Raises:
            Forgotten: it is not the next.
        """
        if at:
            self.check(key, at)
        self.under_way = (key, at + 1)

    def check(self, key: str, batches: int) -> None:
        """Raise Forgotten where other batches were seen than the first so many of this key."""
        if self.under_way != (key, batches):
            raise Forgotten(f"statistics {key}: not the {batches} batches before were seen")

    def forget(self) -> None:
        """Let go of what was gathered."""
        for grams in self.grams:
            grams.close()
        self.under_way, self.grams, self.squares, self.waiting = ("", 0), [], None, {}
        for _, module, _ in self.parts():
            module.requires_grad_(False)

    def conclude(self, key: str, batches: int) -> None:
        """Write what was gathered under a key.

        Raises:
            Forgotten: not all the batches were seen.
        """
        self.check(key, batches)
        if self.squares is None:
            for at, grams in zip(self.segments, self.grams, strict=True):
                self.write(key, at, grams.means(), grams.keys)
        else:
            found = self.squares.means()
            for at, _, names in self.parts():
                mine = {name: found[name] for name in names.values() if name in found}
                self.write(key, at, mine, {name: name for name in mine})
        self.forget()

    # --------------------------------------------------------------------- Fisher's information

    def probe(
        self, at: int, call: str, carry: Activations | Batch, weights: Weights
    ) -> Activations:
        """The forward pass of batch `at`, whose gradients will be squared; kept under `call`.

        Raises:
            Forgotten: the batches before were not seen.
        """
        self.block.check_untied("fisher")
        self.block.fill(weights)
        if not at:
            self.forget()
            live: dict[str, Tensor] = {}
            for _, module, names in self.parts():
                for name, parameter in module.named_parameters():
                    if names[name] in self.block.vectors.deltas:
                        live[names[name]] = parameter.requires_grad_(True)
            self.squares = Squares(live)
        self.count(weights.key, at)
        inputs = {
            name: value.detach().clone().requires_grad_(value.is_floating_point())
            for name, value in self.block.entered(carry).items()
        }
        outputs = inputs
        with torch.inference_mode(False), torch.enable_grad():
            for _, module, _ in self.parts():
                outputs = module(outputs)
        self.waiting[call] = (inputs, outputs)
        return {name: value.detach() for name, value in outputs.items()}

    def judge(self, call: str, task: str, estimate: str, seed: int) -> Activations:
        """The backward passes of the last shard: ∂/∂carry [n, …] of each of the n.

        `sampled`: log p of one drawn label of each image; `exact`: √p_c·log p_c a class, so that
        the squares sum to the expectation; `batch`: their sum.

        Raises:
            Forgotten: that forward pass was not made here.
        """
        inputs, outputs = self.waited(call)
        head = self.block.heads[task].to(torch.float32)
        embedding = outputs[OUTPUT]
        logs = log_softmax(head.logits(embedding.float()), dim=1)
        p = logs.detach().exp()
        if estimate == "sampled":
            drawn = torch.multinomial(p.cpu(), 1, generator=torch.Generator().manual_seed(seed))
            targets = [logs.gather(1, drawn.to(logs.device)).sum()]
        elif estimate == "exact":
            targets = [(p[:, c].sqrt() * logs[:, c]).sum() for c in range(p.shape[1])]
        else:
            targets = [(p.sqrt() * logs).sum()]
        back = []
        for i, target in enumerate(targets):
            target.backward(retain_graph=i + 1 < len(targets))  # type: ignore[no-untyped-call]
            back.append(self.squared(inputs, len(embedding) if i == 0 else 0))
        return {name: torch.stack([b[name] for b in back]) for name in back[0]}

    def recoil(self, call: str, images: int, gradient: Activations) -> Activations:
        """The backward passes of another shard, given ∂/∂outputs [n, …] of each.

        Raises:
            Forgotten: that forward pass was not made here.
        """
        inputs, outputs = self.waited(call)
        names = list(gradient)
        count, back = len(gradient[names[0]]), []
        for i in range(count):
            torch.autograd.backward(
                [outputs[name] for name in names],
                [gradient[name][i].to(outputs[name].device) for name in names],
                retain_graph=i + 1 < count,
            )
            back.append(self.squared(inputs, images if i == 0 else 0))
        return {name: torch.stack([b[name] for b in back]) for name in back[0]}

    def waited(self, call: str) -> tuple[Activations, Activations]:
        """Inputs and outputs of a forward pass, once."""
        if call not in self.waiting:
            raise Forgotten(f"statistics: no forward pass {call}")
        return self.waiting.pop(call)

    def squared(self, inputs: Activations, images: int) -> Activations:
        """Add the squares of one backward pass; ∂/∂inputs, which start at zero again."""
        assert self.squares is not None
        self.squares.add(images)
        found = {}
        for name, value in inputs.items():
            if value.requires_grad:
                found[name] = torch.zeros_like(value) if value.grad is None else value.grad
                value.grad = None
        return found

    # ------------------------------------------------------------------------- merged prefixes

    def advance(
        self,
        keys: Sequence[str],
        method: str,
        params: Mapping[str, Any],
        given: Sequence[Sequence[Activations | Batch]],
    ) -> list[list[Activations]]:
        """Segment by segment: experts on what the merged segments before made, their statistics
        written, the segment merged, and its outputs [T][batches] handed on."""
        row, vectors = METHODS[method], self.block.vectors
        self.block.check_untied(method)
        self.block.filled = ""  # the resident model is overwritten
        current = [[self.block.entered(carry) for carry in batches] for batches in given]
        for at, module, names in self.parts():
            mine = [name for name in names.values() if name in vectors.base]
            part = vectors.restrict(mine).into(self.encoder.arena)
            means, shared = [], {}
            for task, batches in zip(vectors.tasks, current, strict=True):
                mix(replace(part, results=self.encoder.dtype), one_hot(vectors.tasks, task))
                grams = Grams([(module, names)], self.block.vectors.deltas)
                grams.on = True
                with torch.inference_mode():
                    for carry in batches:
                        grams.mask = carry.get("mask")
                        module(carry)
                grams.close()
                means.append(grams.means())
                shared = dict(grams.keys)
            for key, found in zip(keys, means, strict=True):
                self.write(key, at, found, shared)
            row.merge(part, MergeInputs(statistics=self.opened(keys, [at])), **params)
            with torch.inference_mode():
                current = [[module(carry) for carry in batches] for batches in current]
        return current
