"""Collect statistics of data (Gram matrices, Fisher information) in a block while experts run.

They stay in memory until all batches of an expert have been processed, then are written to files.
Batches are counted: a shard that was restarted between two batches raises `Forgotten`.
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
from actors.families.protocol import OUTPUT, Activations, compute_all_rows
from actors.shards.block import Block
from actors.shards.messages import Batch, Weights
from fusion.kinds import MergeInputs
from fusion.methods.statistics.collect import Grams, Statistics
from fusion.methods.statistics.fisher import Squares
from fusion.registry import METHODS
from fusion.task_vectors.coding import mix, one_hot


class StatisticsCollector:
    """Collects the statistics of one expert at a time in one block."""

    def __init__(self, block: Block) -> None:
        """Nothing collected yet."""
        self.block, self.resident, self.segments = block, block.resident, block.segments
        self.under_way: tuple[str, int] = ("", 0)
        """Key of the statistics being collected, and the number of batches processed."""
        self.grams: list[Grams] = []
        self.squares: Squares | None = None
        self.passes: dict[str, tuple[Activations, Activations]] = {}

    def parts(self) -> Iterator[tuple[int, nn.Module, Mapping[str, str]]]:
        """Index, module and global names of each segment of the block."""
        for at, module, link in zip(
            self.segments, self.resident.modules, self.resident.chain, strict=True
        ):
            yield at, module, link.names

    def masked(self, at: int) -> dict[str, str]:
        """Global name of a weight -> the activation that masks its layer's input, of a segment."""
        link = self.resident.whole[at]
        return {link.names[own]: mask for own, mask in link.masks.items()}

    def lacking(self, keys: Sequence[str]) -> list[str]:
        """Keys with a missing or damaged file on this node, among this block's segments."""
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
        """Write one file atomically."""
        write(self.place(key, at), found, keys)

    # ------------------------------------------------------------------------------ Gram matrices

    def gram_forward(
        self, at: int, activations: Activations | Batch, weights: Weights, norms: bool = False
    ) -> Activations:
        """Run batch `at` through the resident model, and add up Gram matrices of layer inputs.

        Args:
            at: number of the batch.
            activations: of the batch.
            weights: of the resident model.
            norms: collect statistics of norm layers too; read with batch 0.

        Raises:
            Forgotten: earlier batches were not processed here.
        """
        self.block.fill(weights)
        if not at:
            self.forget()
            self.grams = [
                Grams([(module, names)], self.block.vectors.deltas, self.masked(at), norms)
                for at, module, names in self.parts()
            ]
        self.count(weights.key, at)
        self.collect(True)
        outputs = self.block.to_device(activations)
        try:
            with torch.inference_mode():
                for grams, (_, module, _) in zip(self.grams, self.parts(), strict=True):
                    grams.masks = outputs
                    outputs = module(outputs)
            return outputs
        finally:
            self.collect(False)

    def collect(self, on: bool) -> None:
        """Whether passes add to the Gram matrices, for which all tokens are computed."""
        for grams, (_, module, _) in zip(self.grams, self.parts(), strict=True):
            compute_all_rows(module, on)
            grams.on, grams.masks = on, {}

    def count(self, key: str, at: int) -> None:
        """Count batch `at`; batch 0 starts a new count.

        Raises:
            Forgotten: it is not the next batch.
        """
        if at:
            self.check(key, at)
        self.under_way = (key, at + 1)

    def check(self, key: str, batches: int) -> None:
        """Raise Forgotten unless exactly the first `batches` batches of this key were processed."""
        if self.under_way != (key, batches):
            raise Forgotten(f"statistics {key}: not the {batches} batches before were seen")

    def forget(self) -> None:
        """Drop everything that was collected."""
        for grams in self.grams:
            grams.close()
        self.under_way, self.grams, self.squares, self.passes = ("", 0), [], None, {}
        for _, module, _ in self.parts():
            module.requires_grad_(False)

    def write_all(self, key: str, batches: int) -> None:
        """Write the collected statistics under a key.

        Raises:
            Forgotten: not all batches were processed here.
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

    def fisher_forward(
        self, at: int, call: str, activations: Activations | Batch, weights: Weights
    ) -> Activations:
        """Forward pass of batch `at`, kept under `call` for its backward passes.

        Raises:
            Forgotten: earlier batches were not processed here.
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
            for name, value in self.block.to_device(activations).items()
        }
        outputs = inputs
        with torch.inference_mode(False), torch.enable_grad():
            for _, module, _ in self.parts():
                outputs = module(outputs)
        self.passes[call] = (inputs, outputs)
        return {name: value.detach() for name, value in outputs.items()}

    def fisher_finish(self, call: str, task: str, estimate: str, seed: int) -> Activations:
        """Backward passes of the last shard, whose squared gradients are added up.

        Args:
            call: key of the forward pass.
            task: task of the head.
            estimate: targets of the n backward passes. `sampled`: log p of one drawn label of each
                sample (n = 1). `exact`: √p_c·log p_c for each class c, so that the squares sum to
                the expectation. `batch`: the sum of those (n = 1).
            seed: of the drawn labels.

        Returns:
            ∂/∂activations [n, …] of the n targets.

        Raises:
            Forgotten: the forward pass did not run here.
        """
        inputs, outputs = self.take_pass(call)
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

    def fisher_backward(self, call: str, images: int, gradient: Activations) -> Activations:
        """Backward passes of another shard, given ∂/∂outputs [n, …]; as `fisher_finish`.

        Raises:
            Forgotten: the forward pass did not run here.
        """
        inputs, outputs = self.take_pass(call)
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

    def take_pass(self, call: str) -> tuple[Activations, Activations]:
        """Remove and return the inputs and outputs of a forward pass."""
        if call not in self.passes:
            raise Forgotten(f"statistics: no forward pass {call}")
        return self.passes.pop(call)

    def squared(self, inputs: Activations, images: int) -> Activations:
        """Add the squared gradients of one backward pass; returns ∂/∂inputs and resets them."""
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
        """Collect statistics of experts on the outputs of the merged segments before them.

        For each segment in order: run every expert's segment on these outputs, write its
        statistics, merge the segment, and compute the merged outputs.

        Returns:
            The outputs of the last segment, [T][batches].
        """
        row, vectors = METHODS[method], self.block.vectors
        self.block.check_untied(method)
        self.block.filled = ""  # the resident model is overwritten
        current = [
            [self.block.to_device(activations) for activations in batches] for batches in given
        ]
        for at, module, names in self.parts():
            mine = [name for name in names.values() if name in vectors.base]
            part = vectors.restrict(mine).into(self.resident.arena)
            means, shared = [], {}
            for task, batches in zip(vectors.tasks, current, strict=True):
                mix(replace(part, results=self.resident.dtype), one_hot(vectors.tasks, task))
                grams = Grams([(module, names)], self.block.vectors.deltas, self.masked(at))
                grams.on = True
                compute_all_rows(module, True)
                with torch.inference_mode():
                    for activations in batches:
                        grams.masks = activations
                        module(activations)
                compute_all_rows(module, False)
                grams.close()
                means.append(grams.means())
                shared = dict(grams.keys)
            for key, found in zip(keys, means, strict=True):
                self.write(key, at, found, shared)
            row.merge(part, MergeInputs(statistics=self.opened(keys, [at])), **params)
            with torch.inference_mode():
                current = [[module(activations) for activations in batches] for batches in current]
        return current
