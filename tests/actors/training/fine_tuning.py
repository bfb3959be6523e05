"""Fine-tuning of image models: hyper-parameters as keywords, and searches of training files."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.families.clip.fine_tune import FineTuning
from actors.families.clip.fine_tune import fine_tune as tune
from actors.families.registry import trainings
from sweeps.spec.method import MethodSpec
from sweeps.train.spec import FileFamily, read_search


def fine_tune(
    base: Path, images: Tensor, labels: Tensor, words: Tensor, out: Path, /, **given
) -> Path:
    """`fine_tune`, with the fields of `FineTuning` among the keywords."""
    names = {field.name for field in fields(FineTuning)} & given.keys()
    options = FineTuning(**{name: given.pop(name) for name in names})
    return tune(base, images, labels, words, out, options, **given)


def image_search(raw: dict[str, Any]) -> MethodSpec:
    """`finetune` of a training file of image models."""
    return read_search(raw, FileFamily("clip", trainings()["clip"]))
