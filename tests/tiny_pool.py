"""A tiny pool made by the project's own code: a base, three experts, three drawn tasks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

TASKS = {"lines": ("flat", "steep"), "tones": ("dark", "grey", "light"), "blobs": ("left", "right")}


@dataclass(frozen=True)
class TinyPool:
    root: Path

    def spec(self, **changes) -> dict:
        content = {
            "name": "tiny",
            "pool": {
                "base": str(self.root / "base"),
                "experts": {task: str(self.root / "experts" / task) for task in TASKS},
            },
            "tasks": {task: {"dataset": str(self.root / "data" / task)} for task in TASKS},
            "methods": {
                "task_arithmetic": {"scale": {"grid": [0.1, 0.3, 0.5, 0.7]}},
                "ties": {"density": {"choice": [0.2, 0.5]}, "scale": {"uniform": [0.2, 1.0]},
                         "trials": 3},
                "wise_ft": {"alpha": 0.5, "expert": "tones"},
            },
        }  # fmt: skip
        return content | changes

    def write(self, path: Path, **changes) -> Path:
        path.write_text(yaml.safe_dump(self.spec(**changes), sort_keys=False))
        return path


def draw(task: str, label: int, rng: np.random.Generator) -> np.ndarray:
    image = rng.integers(60, 120, (32, 32, 3))
    if task == "tones":
        image = image - 60 + 70 * label
    elif task == "lines":
        at = rng.integers(8, 24)
        image[(slice(at, at + 4), slice(None))[:: 1 if label == 0 else -1]] += 120
    else:
        x, y = rng.integers(2, 10) + 14 * label, rng.integers(4, 24)
        image[y : y + 6, x : x + 6] += 120
    return np.clip(image, 0, 255).astype(np.uint8)


def make_pool(root: Path) -> TinyPool:
    import torch
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    from actors.data.task_rows import Captioned
    from actors.families.clip.fine_tune import FineTuning, fine_tune
    from actors.families.clip.pretrain import Sizes, pretrain, zero_shot_head

    rng = np.random.default_rng(0)
    fits = {}
    for task, classes in TASKS.items():
        for split, count in (("train", 80), ("test", 60)):
            labels = [i % len(classes) for i in range(count)]
            arrays = [draw(task, label, rng) for label in labels]
            features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(classes))})
            folder = root / "data" / task
            folder.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(
                {"image": [Image.fromarray(a) for a in arrays], "label": labels}, features=features
            ).to_parquet(folder / f"{split}.parquet")
            if split == "train":
                images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
                fits[task] = Captioned(images, torch.tensor(labels), classes, ("a photo of a {}.",))
    sizes = Sizes(width=32, layers=2, heads=2, mlp=64, patch=16, text_width=32, projection=16)
    pretrain(fits, root / "base", sizes=sizes, steps=12, batch_size=32, threads=1)
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(root / "base")
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    for task, fit in fits.items():
        head = zero_shot_head(model, tokenizer, fit.classnames, fit.templates)
        fine_tune(
            root / "base", fit.images, fit.labels, head, root / "experts" / task,
            FineTuning(epochs=4, batch_size=16, learning_rate=2e-3),
        )  # fmt: skip
    return TinyPool(root)


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer whose tokens are bytes, saved as the hub has it; the size of its words."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {word: index for index, word in enumerate(words)}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    return len(vocab)
