"""Training of the embedded text pool's T5: the base from random weights, experts from the base.

The loop of optimisation, the loss and the writing are those of T5's fine-tuning
(`actors/families/t5/fine_tune.py`). Its `fine_tune` is not called, because it reads rows of a task
that were prepared for `sweeps train`, in a cache on disk; here texts are drawn in memory, and a
step of the base has equally many of each task.

Axes: N texts, B batch, n tokens of the longest prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from actors.embedded.text.tasks import DRAWINGS, Part
from actors.embedded.text.vocabulary import write_tokenizer
from actors.families.t5.fine_tune import answer_loss, write_model
from actors.training.optimizer_loop import (
    Advance,
    cpu_threads,
    optimise,
    quiet,
    shuffled_batches,
    silent,
    staged,
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the T5: gated feed-forward, no dropout, output projection of its own (untied)."""

    width: int = 96
    inner: int = 192
    heads: int = 3
    head_width: int = 32
    encoder_layers: int = 2
    decoder_layers: int = 1
    """Not more than `encoder_layers`: transformers 5.23 cannot generate with more."""


@dataclass(frozen=True)
class Options:
    """Hyper-parameters of a run: AdamW, cosine schedule after a linear warm-up."""

    steps: int
    learning_rate: float
    batch_size: int = 48
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0


def pretrain(
    parts: Mapping[str, Sequence[Part]],
    out: Path,
    options: Options,
    sizes: Sizes | None = None,
    *,
    threads: int = 1,
    advance: Advance = silent,
) -> Path:
    """Train a T5 from random weights on the texts of several tasks, equally many of each a step.

    Same arguments, same bits on the same kind of CPU.

    Args:
        parts: task -> its texts, with labels.
        out: the folder to make; absent until it is whole.
        options: of the run; `batch_size` is that of all tasks together.
        sizes: of the model; None: `Sizes()`.
        threads: CPU threads; part of what the bits depend on.
        advance: called after each step.
    """
    with cpu_threads(threads), quiet(), staged(out) as folder:
        write_tokenizer(folder)
        tokenizer = load_tokenizer(folder)
        torch.manual_seed(options.seed)
        model = new_model(len(tokenizer), sizes or Sizes())
        data = [examples(tokenizer, task, found) for task, found in parts.items()]
        train(model, data, options, advance)
        write_model(model, folder, tied=False, scaled=False)
    return out


def fine_tune(
    base: Path, task: str, part: Part, out: Path, options: Options, *, threads: int = 1
) -> Path:
    """Fine-tune a T5 on one task: all weights, cross-entropy of the answer's tokens."""
    with cpu_threads(threads), quiet(), staged(out) as folder:
        from transformers import T5ForConditionalGeneration

        tokenizer = load_tokenizer(base)
        model = T5ForConditionalGeneration.from_pretrained(base).eval()
        train(model, [examples(tokenizer, task, [part])], options)
        tokenizer.save_pretrained(folder)
        write_model(model, folder, tied=False, scaled=False)
    return out


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def new_model(words: int, sizes: Sizes) -> Any:
    """A T5 of random weights, its output projection apart from its embedding."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=words,
        d_model=sizes.width,
        d_ff=sizes.inner,
        d_kv=sizes.head_width,
        num_heads=sizes.heads,
        num_layers=sizes.encoder_layers,
        num_decoder_layers=sizes.decoder_layers,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties the two whatever the configuration says.
    model.lm_head = torch.nn.Linear(sizes.width, words, bias=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    return model.eval()


@dataclass(frozen=True, eq=False)
class Examples:
    """Prompts and answers of one task, as token ids."""

    prompts: list[Tensor]
    """Int64 [tokens] each, with the end token."""
    answers: Tensor
    """Int64 [N, 2]: a word and the end token."""


def examples(tokenizer: Any, task: str, parts: Sequence[Part]) -> Examples:
    """The prompts and answers of a task's texts."""
    drawing = DRAWINGS[task]
    prompts = [drawing.template.format(text=text) for part in parts for text in part.texts]
    ids = [torch.tensor(each) for each in tokenizer(prompts)["input_ids"]]
    answers = torch.tensor(tokenizer(list(drawing.targets))["input_ids"])
    labels = [label for part in parts for label in part.labels]
    return Examples(ids, answers[torch.tensor(labels)])


def train(
    model: Any, data: Sequence[Examples], options: Options, advance: Advance = silent
) -> None:
    """Minimise the cross-entropy of answers, with equally many texts of each task a step."""
    prompts = [prompt for each in data for prompt in each.prompts]
    answers = torch.cat([each.answers for each in data])

    def loss(rows: Tensor) -> Tensor:
        ids = pad_sequence([prompts[row] for row in rows.tolist()], batch_first=True)
        return answer_loss(model, {"ids": ids, "mask": ids != 0}, answers[rows])

    optimise(
        loss,
        model,
        balanced_batches([len(each.prompts) for each in data], options),
        options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip_norm=options.clip_norm,
        advance=advance,
    )


def balanced_batches(counts: Sequence[int], options: Options) -> Iterator[Tensor]:
    """Row numbers of each step: an equal share from each task, whose rows follow each other."""
    share = max(1, options.batch_size // len(counts))
    starts = itertools.accumulate([0, *counts[:-1]])
    streams = [
        (start, shuffled_batches(count, share, options.steps, options.seed + number))
        for number, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    for _ in range(options.steps):
        yield torch.cat([start + next(rows) for start, rows in streams])
