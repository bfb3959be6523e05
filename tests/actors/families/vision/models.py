"""Tiny random ViT and ResNet classifiers in the hub's layout, and data sets of their classes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

SIDE = 16
"""Pixels of an image, a side."""

CLASSES = ("circle", "square", "star")

KINDS = ("vit", "basic", "bottleneck")
"""A ViT, and ResNets of the two kinds of layer."""


@dataclass(frozen=True)
class Models:
    """Random classifiers of one architecture."""

    kind: str

    @property
    def resnet(self) -> bool:
        """Whether they have batch norm."""
        return self.kind != "vit"

    def config(self, classes: Sequence[str] = CLASSES) -> Any:
        """Of `transformers`."""
        from transformers import ResNetConfig, ViTConfig

        id2label = dict(enumerate(classes))
        named = {"id2label": id2label, "label2id": {name: at for at, name in id2label.items()}}
        if not self.resnet:
            return ViTConfig(
                image_size=SIDE,
                patch_size=8,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                **named,
            )
        sizes = [8, 16]
        return ResNetConfig(
            embedding_size=8, hidden_sizes=sizes, depths=[1, 2], layer_type=self.kind, **named
        )

    def made(self, seed: int = 0, step: float = 0.0, classes: Sequence[str] = CLASSES) -> nn.Module:
        """A random model; `step` > 0: the one of seed 0, moved at random by `seed`."""
        from transformers import AutoModelForImageClassification

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if step else seed)
            model: nn.Module = AutoModelForImageClassification.from_config(self.config(classes))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                noise = torch.randn(tensor.shape, generator=draw)
                if name.endswith("running_var"):
                    tensor.copy_(1 + noise.abs())
                elif name.endswith("num_batches_tracked"):
                    tensor.fill_(seed + 3)
                else:
                    tensor.add_((step or 0.1) * noise)
        return model.eval()

    def write(
        self, folder: Path, seed: int = 0, step: float = 0.0, classes: Sequence[str] = CLASSES
    ) -> Path:
        """The folder of such a model, with its image processor."""
        self.made(seed, step, classes).save_pretrained(folder)  # type: ignore[operator]
        (folder / "preprocessor_config.json").write_text(json.dumps(self.processor()))
        return folder

    def processor(self) -> Mapping[str, Any]:
        """Content of the file of its image processor."""
        if self.resnet:
            edge = {"shortest_edge": SIDE}
            return {"image_processor_type": "ConvNextImageProcessor", "size": edge, "crop_pct": 1.0}
        size = {"height": SIDE, "width": SIDE}
        return {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2}


def write_task(
    folder: Path, seed: int = 0, rows: tuple[int, int] = (24, 12), classes: Sequence[str] = CLASSES
) -> Path:
    """A data set of images that differ in brightness by class; train and test."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for split, count in zip(("train", "test"), rows, strict=True):
        labels = np.arange(count) % len(classes)
        images = [png(draw, 40 + 80 * label) for label in labels]
        table = pa.table({"image": pa.array(images, pa.binary()), "label": labels})
        pq.write_table(table, folder / f"{split}.parquet")
    (folder / "meta.json").write_text(json.dumps({"classnames": list(classes)}))
    return folder


def png(draw: np.random.Generator, light: int) -> bytes:
    """An image of noise around a brightness."""
    pixels = np.clip(draw.normal(light, 40, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
