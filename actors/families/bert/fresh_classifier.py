"""An encoder with a fresh classifier for one task: what all fine-tunings of the task start from.

Models whose weights are averaged need one start, the classifier included (Wortsman et al. 2022,
arXiv:2203.05482), so it is drawn once a task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.task import Task
from actors.data.text.tokenizer import open_tokenizer
from actors.families.bert.architecture import ROBERTA, canonical
from actors.training.optimizer_loop import quiet
from fusion.errors import InputError


def check_encoder(base: Checkpoint) -> None:
    """Raise InputError where a base has a classifier of its own."""
    if labels := base.fields["labels"]:
        raise InputError(
            f"{base.name}: {base.folder}: has a classifier of {len(labels)} classes; each task gets"
            " a classifier of its own: an encoder without one needed"
        )


def write_start(base: Checkpoint, task: Task, seed: int, folder: Path) -> None:
    """Write the base with a fresh classifier, in float32, and its tokenizer.

    What the base lacks of pooler and classifier is drawn as BERT's authors do: weights from
    N(0, `initializer_range`²), 0.02 by default, biases 0 (Devlin et al. 2019, arXiv:1810.04805,
    and their code, without its cut at two deviations, as in `transformers`).

    Args:
        base: an encoder.
        task: whose class names become `id2label`.
        seed: of the draw.
        folder: to write to.
    """
    model = empty_classifier(base, task)
    generator = torch.Generator().manual_seed(seed)
    held = dict(read(base))
    for name, parameter in model.named_parameters():
        known = held.get(canonical(name))
        fill(parameter.data, known, model.config.initializer_range, generator)
    save(model, base, folder)


def empty_classifier(base: Checkpoint, task: Task) -> Any:
    """A classifier of `transformers` with the base's configuration; its weights mean nothing."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(base.folder)
    config.id2label = dict(enumerate(task.classnames))
    config.label2id = {name: at for at, name in config.id2label.items()}
    config.dtype = torch.float32
    kind = "Roberta" if base.fields["model_type"] == ROBERTA else "Bert"
    with torch.random.fork_rng(devices=[]), quiet():  # the model draws weights of its own
        return getattr(transformers, f"{kind}ForSequenceClassification")(config).float()


def fill(memory: Tensor, known: Tensor | None, spread: float, generator: torch.Generator) -> None:
    """Fill a parameter with the base's, or where the base has none with a fresh one."""
    if known is not None:
        memory.copy_(known)
    elif memory.ndim > 1:
        memory.copy_(spread * torch.randn(memory.shape, generator=generator))
    else:
        memory.zero_()


def save(model: Any, base: Checkpoint, folder: Path) -> None:
    """Write a classifier as `transformers` does, with the base's tokenizer beside it."""
    with quiet():
        model.save_pretrained(folder)
    open_tokenizer(base.folder, base.name).copy_to(folder)
