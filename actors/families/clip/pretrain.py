"""Pretrain a small CLIP from scratch on labelled images: towers, tokenizer, image processor.

Axes: N images, B batch, C classes (of all tasks together), P prompts, S tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.data.prompts import fill
from actors.data.task_rows import Captioned
from actors.families.clip.fine_tune import (
    Advance,
    cpu_threads,
    optimise,
    quiet,
    shuffled_batches,
    silent,
    staged,
    standardised,
)
from actors.training.checkpoint import Averages, Run
from fusion.logits import cosine_head

BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SAVED = tuple(part / 20 for part in range(1, 20))
"""Fractions of the steps after which the state is saved."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a small CLIP."""

    image: int = 32
    """Pixels of an image, a side."""
    patch: int = 8
    """Pixels of a patch, a side."""
    width: int = 128
    """Width of the vision tower."""
    layers: int = 3
    """Layers of the vision tower."""
    heads: int = 4
    """Attention heads of the vision tower."""
    mlp: int = 256
    """Hidden width of its MLP blocks."""
    text_width: int = 64
    """Width of the text tower."""
    text_layers: int = 2
    """Layers of the text tower."""
    text_heads: int = 2
    """Attention heads of the text tower."""
    text_mlp: int = 128
    """Hidden width of its MLP blocks."""
    projection: int = 64
    """Width of embeddings."""


def pretrain(
    tasks: Mapping[str, Captioned],
    out: Path,
    *,
    sizes: Sizes | None = None,
    steps: int = 500,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    clip_norm: float = 1.0,
    logit_scale: float = 20.0,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
    advance: Advance = silent,
    state: Path | None = None,
) -> Path:
    """Train a CLIP on all `tasks` together and save it as a Hugging Face folder.

    A step takes images of all tasks and compares each with one prompt for each class of all tasks;
    the template is drawn again in each step. Both towers, both projections and the logit scale are
    trained. `CLIPModel`, `CLIPProcessor` and `AutoTokenizer` load the result like a hub id.

    Args:
        tasks: name -> images with class names and templates; all images [3, H, W] of one size.
        out: the folder to create; it does not exist until it is complete.
        sizes: shapes of the towers; None: `Sizes()`.
        steps: optimiser steps.
        batch_size: images in a step.
        learning_rate: highest learning rate of AdamW.
        weight_decay: weight decay of AdamW, on matrices only.
        warmup: fraction of the steps in which the learning rate rises.
        clip_norm: largest global gradient norm.
        logit_scale: exp(logit_scale) at the start.
        seed: of the weights, the order of images and the templates.
        threads: CPU threads; fixes the order of sums, so part of what the bits depend on.
        device: device to train on.
        advance: called after each step.
        state: file in which the state of the unfinished run is saved twenty times. If it exists,
            from a run with the same arguments, the run continues from it, to the same bits.

    Returns:
        `out`.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = sizes or Sizes()
    prompts = [
        [fill(template, name) for template in task.templates]
        for task in tasks.values()
        for name in task.classnames
    ]
    tokenizer = train_tokenizer([prompt for row in prompts for prompt in row])
    side = {"height": sizes.image, "width": sizes.image}
    processor = CLIPImageProcessorPil(size={"shortest_edge": sizes.image}, crop_size=side)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    tokens = [tokenised(tokenizer, row).to(device) for row in prompts]
    images = torch.cat([task.images for task in tasks.values()]).to(device)
    labels = joint_labels(tasks.values()).to(device)
    rng = torch.Generator().manual_seed(seed)
    with cpu_threads(threads):
        model = new_clip(sizes, tokenizer, logit_scale, seed).to(device).train()
        running = Run(model, Averages(0.0, 0.0, steps), steps, state, shares=SAVED)

        def drawn() -> list[Tensor]:
            return [row[int(torch.randint(len(row), (), generator=rng))] for row in tokens]

        def loss(rows: Tensor) -> Tensor:
            head = text_embeddings(model, stacked(drawn(), tokenizer.pad_token_id))
            head = model.logit_scale.exp() * cosine_head.normalized(head)
            pixels = standardised(images[rows], mean, std)
            seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            return F.cross_entropy(cosine_head.logits(seen, head), labels[rows])

        resumed = running.resume(device)
        for _ in range(running.begun):
            drawn()
        optimise(
            loss,
            model,
            shuffled_batches(len(images), batch_size, steps, seed),
            steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            clip_norm=clip_norm,
            advance=advance,
            after=running.after,
            resumed=resumed,
        )
    with staged(out) as folder, quiet():
        model.to("cpu").eval().save_pretrained(folder)
        save_processor(tokenizer, processor, folder)
    running.end()
    return out


def new_clip(sizes: Sizes, tokenizer: Any, logit_scale: float, seed: int) -> Any:
    """A CLIPModel with random weights that depend on `seed` only."""
    from transformers import CLIPConfig, CLIPModel

    scale = float(torch.tensor(logit_scale).log())
    config = CLIPConfig(
        vision_config={
            "image_size": sizes.image,
            "patch_size": sizes.patch,
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "intermediate_size": sizes.mlp,
            "projection_dim": sizes.projection,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "intermediate_size": sizes.text_mlp,
            "projection_dim": sizes.projection,
            "max_position_embeddings": 77,
            # The text tower pools at the first EOS. (EOS id 2 would switch on CLIP's legacy rule.)
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=sizes.projection,
        logit_scale_init_value=scale,
    )
    # Initialisation draws from torch's global generator: save its state, and restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def joint_labels(tasks: Iterable[Captioned]) -> Tensor:
    """Labels [N] of all tasks' images, numbered over the classes of all tasks."""
    rows, offset = [], 0
    for task in tasks:
        rows.append(task.labels + offset)
        offset += len(task.classnames)
    return torch.cat(rows)


def train_tokenizer(texts: Sequence[str], merges: int = 400) -> Any:
    """A CLIPTokenizer whose byte pairs are learned from `texts`; it can encode any other word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    like = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = like.normalizer, like.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2 * len(letters) + merges,
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    pairs = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [first + second for first, second in pairs]
    vocab = {word: index for index, word in enumerate(dict.fromkeys([*words, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77)


def tokenised(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Token ids [P, S], padded with EOS to the longest text."""
    ids: Tensor = tokenizer(list(texts), padding=True, return_tensors="pt").input_ids
    return ids


def stacked(rows: Sequence[Tensor], pad: int) -> Tensor:
    """Token rows [S] of different lengths, padded to one tensor [P, S]."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)


def text_embeddings(model: Any, tokens: Tensor) -> Tensor:
    """Text embeddings [P, D] of token ids [P, S], not normalised."""
    # No attention mask: attention is causal and pooling is at the first EOS, before any padding.
    pooled = model.text_model(input_ids=tokens).pooler_output
    embeddings: Tensor = model.text_projection(pooled)
    return embeddings


def zero_shot_head(
    model: Any, tokenizer: Any, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """The head [C, D] of a task: its classes' mean prompt embeddings, times the logit scale."""
    with torch.no_grad():
        rows = [
            text_embeddings(model, tokenised(tokenizer, [fill(t, name) for t in templates]))
            for name in classnames
        ]
        return cosine_head.zero_shot_head(rows, model.logit_scale)


def save_processor(tokenizer: Any, processor: Any, folder: Path) -> None:
    """Write tokenizer and image processor so that `CLIPProcessor.from_pretrained` finds both."""
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
