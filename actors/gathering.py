"""Statistics of data, gathered in a shard while experts run through its block, and kept in files.

One file an expert and segment, named by a hash of all that it depends on, under the node's cache
folder: whoever needs them next maps them, and a model that is cut otherwise finds the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from actors.atomic import replacing
from actors.passes import Batch, Weights
from actors.segments import Carry
from actors.sources import cache_dir
from fusion.coding import mix, one_hot
from fusion.fisher import Squares
from fusion.lazy import Computed
from fusion.registry import METHODS, Informed
from fusion.statistics import Grams, Statistics
from fusion.zeroshot import logits

if TYPE_CHECKING:
    from actors.shard import Shard

KEYS = "keys"
"""Metadata: tensor name -> the name of the tensor whose statistic is its own as well."""


def place(key: str, segment: int, root: Path | None = None) -> Path:
    """The file of one expert's statistics of one segment; `root`: the cache, by default ours."""
    return (root or cache_dir()) / "statistics" / f"{key}-{segment}.safetensors"


def opened(keys: Sequence[str], segments: Sequence[int], root: Path | None = None) -> Statistics:
    """Statistics of T experts, stacked when they are read: [T, …]."""
    files: dict[str, list[Path]] = {}
    shared: dict[str, str] = {}
    for at in segments:
        paths = [place(key, at, root) for key in keys]
        with safe_open(paths[0], "pt") as first:
            names = list(first.keys())
            shared |= json.loads((first.metadata() or {}).get(KEYS, "{}"))
        files |= dict.fromkeys(names, paths)

    def stacked(name: str) -> Tensor:
        parts = []
        for path in files[name]:
            with safe_open(path, "pt") as file:
                parts.append(file.get_tensor(name))
        return torch.stack(parts)

    return Statistics(Computed(files, stacked), shared or {name: name for name in files})


class Gathering:
    """What a shard gathers, one expert at a time."""

    def __init__(self, shard: Shard, start: int) -> None:
        """`start`: the index of the block's first segment in the whole chain."""
        self.shard, self.encoder = shard, shard.encoder
        self.segments = range(start, start + len(self.encoder.modules))
        self.root: Path | None = None
        """The cache, where it is not this process's own."""
        self.grams: tuple[str, list[Grams]] = ("", [])
        self.squares: tuple[str, Squares | None] = ("", None)
        self.waiting: dict[str, tuple[Carry, Carry]] = {}

    def parts(self) -> Iterator[tuple[int, nn.Module, Mapping[str, str]]]:
        """Index, module and global names of each segment of the block."""
        for at, module, link in zip(
            self.segments, self.encoder.modules, self.encoder.chain, strict=True
        ):
            yield at, module, link.names

    def lacking(self, keys: Sequence[str]) -> list[str]:
        """Keys some of whose files of these segments this node does not have."""
        return [
            key for key in keys if not all(self.place(key, at).exists() for at in self.segments)
        ]

    def place(self, key: str, at: int) -> Path:
        """The file of one expert's statistics of one segment."""
        return place(key, at, self.root)

    def opened(self, keys: Sequence[str], segments: Sequence[int] | None = None) -> Statistics:
        """The statistics of this block, or of some of its segments."""
        return opened(keys, self.segments if segments is None else segments, self.root)

    def write(
        self, key: str, at: int, found: Mapping[str, Tensor], keys: Mapping[str, str]
    ) -> None:
        """One file, whole or not at all."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
        with replacing(self.place(key, at)) as part:
            save_file(tensors, part, metadata={KEYS: json.dumps(dict(keys))})

    # ------------------------------------------------------------------------------ Gram matrices

    def observe(self, carry: Carry | Batch, weights: Weights) -> Carry:
        """Through the resident model, looking at what its linear layers are given."""
        key = weights.key
        self.shard.fill(weights)
        if self.grams[0] != key:
            self.forget()
            self.grams = (
                key,
                [
                    Grams([(module, names)], self.shard.vectors.deltas)
                    for _, module, names in self.parts()
                ],
            )
        for grams in self.grams[1]:
            grams.on = True
        try:
            return self.encoder.run(self.shard.entered(carry))
        finally:
            for grams in self.grams[1]:
                grams.on = False

    def forget(self) -> None:
        """Let go of what was gathered."""
        for grams in self.grams[1]:
            grams.close()
        self.grams, self.squares, self.waiting = ("", []), ("", None), {}
        for _, module, _ in self.parts():
            module.requires_grad_(False)

    def conclude(self, key: str) -> None:
        """Write what was gathered under a key."""
        if self.grams[0] == key:
            for at, grams in zip(self.segments, self.grams[1], strict=True):
                self.write(key, at, grams.means(), grams.keys)
        elif self.squares[0] == key and self.squares[1] is not None:
            found = self.squares[1].means()
            for at, _, names in self.parts():
                mine = {name: found[name] for name in names.values() if name in found}
                self.write(key, at, mine, {name: name for name in mine})
        else:
            raise LookupError(f"nothing gathered under {key}")  # a shard that was restarted
        self.forget()

    # --------------------------------------------------------------------- Fisher's information

    def probe(self, call: str, carry: Carry | Batch, weights: Weights) -> Carry:
        """A forward pass whose gradients will be squared; what it needs is kept under `call`."""
        key = weights.key
        self.shard.fill(weights)
        if self.squares[0] != key:
            self.forget()
            live: dict[str, Tensor] = {}
            for _, module, names in self.parts():
                for name, parameter in module.named_parameters():
                    if names[name] in self.shard.vectors.deltas:
                        live[names[name]] = parameter.requires_grad_(True)
            self.squares = (key, Squares(live))
        inputs = {
            name: value.detach().clone().requires_grad_(value.is_floating_point())
            for name, value in self.shard.entered(carry).items()
        }
        outputs = inputs
        with torch.inference_mode(False), torch.enable_grad():
            for _, module, _ in self.parts():
                outputs = module(outputs)
        self.waiting[call] = (inputs, outputs)
        return {name: value.detach() for name, value in outputs.items()}

    def judge(self, call: str, task: str, estimate: str, seed: int) -> Carry:
        """The backward passes of the last shard: ∂/∂carry [n, …] of each of the n.

        `sampled`: log p of one drawn label of each image; `exact`: √p_c·log p_c a class, so that
        the squares sum to the expectation; `batch`: their sum.
        """
        inputs, outputs = self.waiting.pop(call)
        head = self.shard.heads[task]
        embedding = outputs["embedding"]
        logs = log_softmax(logits(embedding.float(), head.float()), dim=1)
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

    def recoil(self, call: str, images: int, gradient: Carry) -> Carry:
        """The backward passes of another shard, given ∂/∂outputs [n, …] of each."""
        inputs, outputs = self.waiting.pop(call)
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

    def squared(self, inputs: Carry, images: int) -> Carry:
        """Add the squares of one backward pass; ∂/∂inputs, which start at zero again."""
        assert self.squares[1] is not None
        self.squares[1].add(images)
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
        given: Sequence[Sequence[Carry | Batch]],
    ) -> list[list[Carry]]:
        """Segment by segment: experts on what the merged segments before made, their statistics
        written, the segment merged, and its outputs [T][batches] handed on."""
        row, vectors = METHODS[method], self.shard.vectors
        assert isinstance(row, Informed)
        self.shard.filled = ""  # the resident model is overwritten
        current = [[self.shard.entered(carry) for carry in batches] for batches in given]
        for at, module, names in self.parts():
            mine = [name for name in names.values() if name in vectors.base]
            part = vectors.restrict(mine).into(self.encoder.arena)
            means, shared = [], {}
            for task, batches in zip(vectors.tasks, current, strict=True):
                mix(part, one_hot(vectors.tasks, task))
                grams = Grams([(module, names)], self.shard.vectors.deltas)
                grams.on = True
                with torch.inference_mode():
                    for carry in batches:
                        module(carry)
                grams.close()
                means.append(grams.means())
                shared = dict(grams.keys)
            for key, found in zip(keys, means, strict=True):
                self.write(key, at, found, shared)
            row.merge_surveyed(part, None, {**params, "statistics": self.opened(keys, [at])})
            with torch.inference_mode():
                current = [[module(carry) for carry in batches] for batches in current]
        return current
