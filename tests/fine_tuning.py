"""Fine-tuning with hyper-parameters and other arguments together, as keywords."""

from dataclasses import fields
from pathlib import Path

from torch import Tensor

from actors.families.clip.fine_tune import FineTuning
from actors.families.clip.fine_tune import fine_tune as tune


def fine_tune(
    base: Path, images: Tensor, labels: Tensor, words: Tensor, out: Path, /, **given
) -> Path:
    """`fine_tune`, with the fields of `FineTuning` among the keywords."""
    names = {field.name for field in fields(FineTuning)} & given.keys()
    options = FineTuning(**{name: given.pop(name) for name in names})
    return tune(base, images, labels, words, out, options, **given)
