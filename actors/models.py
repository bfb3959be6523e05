"""Resident models: a vision tower, or a block of its segments, whose parameter memory merges are
written into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from actors.checkpoints import Checkpoint, inspect, read
from actors.preprocess import read_preprocess
from actors.segments import Carry, Embed, clip_segments


class ImageEncoder:
    """CLIP's image side, resident on one device: pixels in, projected embeddings out."""

    def __init__(
        self,
        base: Path | str | Checkpoint,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        block: tuple[int, int] | None = None,
    ) -> None:
        """Build the tower from its configuration and fill it from the file.

        Args:
            base: the folder of a model with a projection, or its inspected checkpoint.
            device: where it lives and computes.
            dtype: what it computes in.
            block: segments [start, stop) only (see `clip_segments`); None: all of them.

        Raises:
            InputError: no projection, or images prepared to another size than the model's.
        """
        checkpoint = base if isinstance(base, Checkpoint) else inspect(str(base), "pool.base")
        self.device = torch.device(device)
        self.dtype = dtype
        self.chain = clip_segments(checkpoint)[slice(*(block or (None, None)))]
        self.preprocess = read_preprocess(checkpoint.folder)
        self.arena: dict[str, Tensor] = {}
        """Canonical name -> the live memory of that parameter, contiguous."""
        self.modules = []
        for segment in self.chain:
            module = segment.build().to_empty(device=device).to(dtype)
            if isinstance(module, Embed):
                module.dtype = dtype
            for name, parameter in module.named_parameters():
                self.arena[segment.names[name]] = parameter.data
            self.modules.append(module)
        order = [name for name in checkpoint.tensors if name in self.arena]
        self.arena = {name: self.arena[name] for name in order}
        self.load(read(checkpoint, self.arena))

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into the arena."""
        left = set(self.arena)
        for name, tensor in tensors:
            self.arena[name].copy_(tensor)
            left.remove(name)
        assert not left, f"not filled: {sorted(left)}"  # headers were checked before

    @torch.inference_mode()
    def run(self, carry: Carry) -> Carry:
        """The carry after these segments."""
        for module in self.modules:
            carry = module(carry)
        return carry

    def embed(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [B, 3, H, W] -> projected embeddings [B, D], not normalised."""
        return self.run({"pixels": pixels.to(self.device)})["embedding"]
