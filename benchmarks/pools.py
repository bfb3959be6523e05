"""Random pools for benchmarks, and the textbook's way with them: sums of state dicts in Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.func import functional_call

from actors.artifacts.head_file import read_head
from actors.artifacts.recipe import BASE
from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.images.pixel_cache import open_pixels
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.preprocessor_config import read_preprocess
from actors.data.task_rows import Rows, TaskData
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts
from actors.experts.model_runner import ModelRunner
from actors.families.clip.architecture import PROJECTION
from actors.families.clip.build import clip_config, empty
from actors.families.registry import family_in, inspect
from actors.files.checksums import sealed
from actors.files.fingerprint import fingerprint
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.shard import Shard
from fusion.logits.cosine_head import logits
from fusion.logits.entropy import entropy
from fusion.methods.learned.steps import Shape, TrainingPlan, stacked_rows
from fusion.registry import METHODS, Adaptive
from fusion.task_vectors.task_vectors import TaskVectors

if TYPE_CHECKING:
    from transformers import CLIPConfig

SEED = 0
ROLE = "fit"
TASKS = tuple(f"task{t}" for t in range(8))
ROWS = 64
"""Images a task."""
CLASSES = 10
FEATURES = 512
"""Width of the features that gates read: a ResNet-18's, say."""


@dataclass(frozen=True)
class Size:
    """A vision tower."""

    name: str
    width: int
    layers: int
    heads: int
    mlp: int
    patch: int
    image: int
    projection: int

    @property
    def tokens(self) -> int:
        """Tokens an image."""
        return (self.image // self.patch) ** 2 + 1

    @property
    def weights(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp)

    def __str__(self) -> str:
        return f"{self.name} (width {self.width}, {self.layers} layers, {self.tokens} tokens)"


EMBEDDED = Size("embedded", 160, 2, 5, 320, 8, 32, 64)
MIDDLE = Size("middle", 256, 8, 4, 1024, 8, 56, 128)
B32 = Size("b32", 768, 12, 12, 3072, 32, 224, 512)


def write_base(size: Size, folder: Path) -> Path:
    """A random CLIP in the hub's layout, with a text tower as small as can be."""
    from transformers import CLIPModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(SEED)
    CLIPModel(clip_of(size)).save_pretrained(folder)
    write_preprocessing(size, folder)
    return folder


def write_zeros(size: Size, folder: Path) -> Path:
    """The same with weights that are all zero: a sparse file, written at once."""
    from transformers import CLIPModel

    folder.mkdir(parents=True)
    config = clip_of(size)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        tensors = CLIPModel(config).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    write_preprocessing(size, folder)
    return folder


def clip_of(size: Size) -> CLIPConfig:
    """A configuration of `transformers`."""
    from transformers import CLIPConfig

    vision = {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp,
        "patch_size": size.patch,
        "image_size": size.image,
    }
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 16,
        "bos_token_id": 14,
        "eos_token_id": 15,
        "pad_token_id": 15,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.projection)


def write_preprocessing(size: Size, folder: Path) -> None:
    """The file of a CLIP's preprocessing."""
    square = {"height": size.image, "width": size.image}
    about: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "crop_size": square}
    about |= {"size": {"shortest_edge": size.image}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


def write_expert(base: Checkpoint, folder: Path, seed: int) -> Path:
    """The base's vision tower, moved at random."""
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    moved = {
        name: tensor + 0.002 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in read(base, tower(base))
    }
    folder.mkdir(parents=True)
    kind = {**base.config["vision_config"], "architectures": ["CLIPVisionModel"]}
    (folder / "config.json").write_text(json.dumps(kind))
    save_file(moved, folder / "model.safetensors")
    return folder


def tower(base: Checkpoint) -> list[str]:
    """The tensors that are fused."""
    return [name for name in base.tensors if name != PROJECTION]


def random_vectors(base: Checkpoint, tasks: tuple[str, ...], device: str) -> TaskVectors:
    """The base's tensors and random task vectors; the same every time."""
    draw = torch.Generator(device).manual_seed(SEED)
    origin = {name: tensor.clone().to(device) for name, tensor in read(base, tower(base))}
    deltas = {
        name: torch.empty(len(tasks), *tensor.shape, device=device)
        for name, tensor in origin.items()
    }
    for delta in deltas.values():
        delta.normal_(0, 0.002, generator=draw)
    return TaskVectors(tasks, origin, deltas)


def write_data(size: Size, tasks: tuple[str, ...], rows: int, folder: Path) -> dict[str, TaskData]:
    """Noise images and a random head of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed, task in enumerate(tasks):
        draw = torch.Generator().manual_seed(seed)
        rng = np.random.default_rng(seed)
        classes = torch.randn(CLASSES, size.projection, generator=draw)
        head, pixels = folder / f"{task}.safetensors", folder / f"{task}.arrow"
        matrix = 20 * torch.nn.functional.normalize(classes, dim=-1)
        head.write_bytes(sealed({"head": matrix}, {}))
        labels = rng.integers(0, CLASSES, rows)
        # Coarse noise: images of fine noise all look alike to a random tower.
        coarse = rng.integers(0, 256, (rows, 3, 4, 4), dtype=np.uint8)
        times = -(-size.image // 4)
        images = coarse.repeat(times, 2).repeat(times, 3)[:, :, : size.image, : size.image]
        write_pixels(pixels, np.ascontiguousarray(images), labels)
        found[task] = TaskData(task, head, {ROLE: Rows(pixels)})
    return found


def write_pixels(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    """A pixel file of uint8 images [N, 3, H, W]."""
    rows, width = len(images), images[0].size
    about = {"shape": ",".join(map(str, images.shape[1:]))}
    table = pa.table(
        {
            "part": np.zeros(rows, dtype=np.int64),
            "row": np.arange(rows),
            "label": labels.astype(np.int64),
            "image": pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), width),
        }
    )
    with PixelWriter([(path, rows, about)], width) as writer:
        writer.write(table)


def experts(
    base: Checkpoint,
    vectors: TaskVectors,
    data: Mapping[str, TaskData],
    device: str,
    dtype: torch.dtype = torch.float32,
) -> LocalExperts:
    """One shard with all of it, here; `dtype`: of activations and merged weights."""
    heads = {name: read_head(task.head) for name, task in data.items()}
    shard = Shard(base, vectors, heads, device, dtype)
    pipeline = Pipeline([shard], [shard.names()], vectors.groups, LocalLink())
    names = {name: fingerprint("benchmark", name) for name in (*vectors.tasks, BASE)}
    cache = EmbeddingCache(base.folder / "embeddings", names)
    row_bytes = 4 * family_in(base).layout(base).sampled_elements
    stacked = stacked_rows(row_bytes, device)
    return LocalExperts(ModelRunner(pipeline, vectors.tasks, data, cache, device, stacked=stacked))


def gate_learning(
    tasks: tuple[str, ...], groups: tuple[str, ...], grouping: str, rows: int = 16
) -> TrainingPlan:
    """DAWE with a gate whose codings differ from image to image."""
    method = METHODS["dawe"]
    assert isinstance(method, Adaptive)
    shape = Shape(tasks, groups, FEATURES)
    learning = method.plan(shape, grouping=grouping, learning_rate=1e-4, batch_size=rows)
    draw = torch.Generator().manual_seed(SEED)
    state = learning.router.state_dict()
    state["2.weight"].normal_(0, 0.003, generator=draw)
    return learning


def features(tasks: tuple[str, ...], rows: int) -> dict[str, Tensor]:
    """Task -> random features [N, d]."""
    draw = torch.Generator().manual_seed(SEED)
    return {task: torch.randn(rows, FEATURES, generator=draw) for task in tasks}


class RandomPool:
    """Eight experts: base and images from disk, task vectors in memory."""

    def __init__(self, size: Size, folder: Path, device: str) -> None:
        self.size, self.device = size, device
        self.base = inspect(str(folder / "base"), "pool.base")
        self.data = write_data(size, TASKS, ROWS, folder / "data")
        self.vectors: TaskVectors = random_vectors(self.base, TASKS, device)
        self.features = features(TASKS, ROWS)
        self.sizes = dict.fromkeys(TASKS, ROWS)

    def experts(self) -> LocalExperts:
        """Ours."""
        return experts(self.base, self.vectors, self.data, self.device)

    @property
    def nbytes(self) -> int:
        """Base and task vectors."""
        tensors = [*self.vectors.base.values(), *self.vectors.deltas.values()]
        return sum(tensor.nbytes for tensor in tensors)


def merged_state(vectors: TaskVectors, coding: Tensor) -> dict[str, Tensor]:
    """θ₀ + Σ_t c_t τ_t for a coding [T, 1 or G], as Python sums of state dicts."""
    columns = coding.expand(-1, len(vectors.groups))
    state = dict(vectors.base)
    for t in range(len(vectors.tasks)):
        for g, name in enumerate(vectors.groups):
            state[name] = state[name] + columns[t, g] * vectors.deltas[name][t]
    return state


class Textbook:
    """State dicts added up, and transformers' CLIPVisionModel called with them."""

    def __init__(self, pool: RandomPool, *, by_sample: bool = False) -> None:
        """`by_sample`: one `functional_call` an image in training, and not one a batch."""
        from transformers import CLIPVisionModel

        self.by_sample = by_sample
        self.vectors, self.device = pool.vectors, pool.device
        config = clip_config(pool.base).vision_config
        self.model = empty(CLIPVisionModel, config, pool.device, torch.float32)
        [(_, projection)] = read(pool.base, [PROJECTION])
        self.projection = projection.clone().to(pool.device)
        self.preprocess = read_preprocess(pool.base.folder)
        self.heads = {t: read_head(d.head).to(pool.device) for t, d in pool.data.items()}
        self.images = {t: open_pixels(d.rows[ROLE].file).images for t, d in pool.data.items()}

    def merged(self, coding: Tensor) -> dict[str, Tensor]:
        """θ₀ + Σ_t c_t τ_t for a coding [T, 1 or G]."""
        return merged_state(self.vectors, coding.to(self.device))

    def pixels(self, task: str, rows: Tensor) -> Tensor:
        """Normalised images."""
        return self.preprocess.normalise(self.images[task][rows].to(self.device))

    def embed(self, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Projected embeddings."""
        pooled: Tensor = functional_call(self.model, dict(state), (images,)).pooler_output
        return pooled @ self.projection.T

    def loss(self, state: Mapping[str, Tensor], task: str, rows: Tensor) -> Tensor:
        """Mean entropy of a task's rows."""
        images = self.pixels(task, rows)
        each = torch.split(images, 1 if self.by_sample else len(images))
        embedded = torch.cat([self.embed(state, part) for part in each])
        return entropy(logits(embedded, self.heads[task])).mean()

    def code(self, task: str, rows: Tensor, coding: Tensor) -> Tensor:
        """One merge and one forward pass an image."""
        with torch.no_grad():
            images = self.pixels(task, rows)
            found = [self.embed(self.merged(c), images[i : i + 1]) for i, c in enumerate(coding)]
            return torch.cat(found)

    def static(self, rows: Mapping[str, Tensor], coding: Tensor) -> Tensor:
        """∂(Σ losses)/∂coding [1, T, G], task by task."""
        leaf = coding.clone().requires_grad_()
        state = self.merged(leaf[0])
        for task, at in rows.items():
            self.loss(state, task, at).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad
