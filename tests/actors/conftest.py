"""Tiny random CLIP models in the hub's layout, and small image data sets."""

import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.actors.laws.parts import Parts, make_parts
from tests.tiny_bert import KINDS, Models, make_models
from tests.tiny_pool import TinyPool, write_tokenizer

SIZE = 32
WIDTH = 32
DIM = 24
POSITIONS = 77


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True)
class Tiny:
    """A random CLIP model and ways to write it."""

    config: dict[str, Any]
    state: Mapping[str, Tensor]
    """As a full CLIPModel names it."""
    tokenizer: Path
    vision_order: tuple[str, ...]
    """The names of CLIPVisionModel's state dict, in its order."""

    def vision(self, seed: int | None = None, step: float = 0.1) -> dict[str, Tensor]:
        """The vision tower under canonical names; moved at random by `seed`."""
        prefix = "vision_model."
        tower = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        if seed is None:
            return tower
        draw = torch.Generator().manual_seed(seed)
        return {k: v + step * torch.randn(v.shape, generator=draw) for k, v in tower.items()}

    def write(self, folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
        """A folder of one safetensors file; the kind of model follows from the tensors."""
        folder.mkdir(parents=True, exist_ok=True)
        full = "logit_scale" in tensors
        kind = self.config if full else self.config["vision_config"]
        kind = {**kind, "architectures": ["CLIPModel" if full else "CLIPVisionModel"], **config}
        (folder / "config.json").write_text(json.dumps(kind))
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
        return folder

    def base(self, folder: Path, dtype: torch.dtype = torch.float32, **tensors: Tensor) -> Path:
        """A full model with preprocessor and tokenizer."""
        state = {k: v.to(dtype) for k, v in {**self.state, **tensors}.items()}
        self.write(folder, state)
        for file in self.tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        size = {"height": SIZE, "width": SIZE}
        about = {"image_processor_type": "CLIPImageProcessor", "crop_size": size}
        about |= {"size": {"shortest_edge": SIZE}, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
        return folder

    def expert(self, folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> Path:
        """A vision tower, names without prefix."""
        return self.write(folder, {k: v.to(dtype) for k, v in self.vision(seed).items()})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = write_tokenizer(folder)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": DIM,
    }
    text = {
        **shape,
        "vocab_size": vocab,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": vocab - 1,
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**shape, "image_size": SIZE, "patch_size": 16},
        projection_dim=DIM,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    order = tuple(CLIPVisionModel(config.vision_config).state_dict())
    return Tiny(config.to_dict(), model.state_dict(), folder, order)


@pytest.fixture
def pool_folders(tiny: Tiny, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Sources of a base and three experts."""
    base = tiny.base(tmp_path / "base")
    experts = {f"t{i}": str(tiny.expert(tmp_path / f"t{i}", seed=i)) for i in range(3)}
    return str(base), experts


@pytest.fixture(scope="module")
def parts(
    request: pytest.FixtureRequest, tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory
) -> Parts:
    """The tiny pool with its data and made-up features, and caches of one file of tests."""
    return make_parts(tiny_pool.root, tmp_path_factory.mktemp(request.path.stem))


Sent = TypeVar("Sent")


def sent(value: Sent) -> Sent:
    """As another process gets it."""
    found: Sent = pickle.loads(pickle.dumps(value))
    return found


Encode = Callable[..., bytes]


def png(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 36)) -> bytes:
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def encode() -> Encode:
    return png


def write_parquet(
    file: Path,
    labels: list[Any],
    *,
    names: list[str] | None = None,
    images: list[bytes | None] | None = None,
    group: int = 1000,
    first: int = 0,
) -> Path:
    """A file as `datasets` writes it: struct images, ClassLabel names in the metadata."""
    content = images or [png(first + row) for row in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(content)]
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array(labels)})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": about})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=group)
    return file


@pytest.fixture
def parquet() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A data set with train (20 rows, row groups of 7) and test (6 rows)."""
    names = ["cat", "dog"]
    folder = tmp_path / "animals"
    write_parquet(folder / "train.parquet", [0, 1] * 10, names=names, group=7)
    write_parquet(folder / "test.parquet", [1, 0, 1, 0, 1, 1], names=names, first=100)
    return folder


@pytest.fixture(scope="session")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Models]:
    return make_models(tmp_path_factory.mktemp("text_models"))


@pytest.fixture(params=KINDS)
def models(request: pytest.FixtureRequest, all_models: dict[str, Models]) -> Models:
    """BERT, and RoBERTa."""
    return all_models[request.param]


@pytest.fixture
def bert(all_models: dict[str, Models]) -> Models:
    return all_models["bert"]
