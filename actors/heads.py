"""Heads [C, D] of tasks: a task's classes as the base's text tower sees them, or a given file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.atomic import replacing
from actors.checkpoints import Checkpoint, content_hash, read
from actors.hashes import hash_files, hash_text
from actors.headers import check_regular
from actors.headfile import check_head, check_rows
from actors.prompts import fill
from actors.tasks import Task
from fusion.errors import InputError, one_line, reading

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

PROMPTS = 256
"""Prompts a forward pass."""


def task_heads(base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
    """Each task's head in the cache: a copy of the file it names, else its zero-shot head.

    A copy, named by its content: a file that is replaced in mid-sweep changes nothing, and nodes
    that do not see it are sent it as all else.

    Raises:
        InputError: see `check_head` and `zero_shot_heads`.
    """
    words = {name: task for name, task in tasks.items() if task.source.head is None}
    found = zero_shot_heads(base, words, root) if words else {}
    for name, file in check_heads(base, tasks).items():
        data = file.read_bytes()
        found[name] = root / "heads" / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        if not found[name].exists():
            with replacing(found[name]) as part:
                part.write_bytes(data)
    return {name: found[name] for name in tasks}


def check_heads(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
    """The head files that tasks name.

    Raises:
        InputError: see `check_head`.
    """
    found = {}
    for name, task in tasks.items():
        if task.source.head is not None:
            found[name] = Path(task.source.head).expanduser()
            check_head(found[name], f"tasks.{name}.head", base, task.classnames)
    return found


def zero_shot_heads(
    base: Checkpoint,
    tasks: Mapping[str, Task],
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Each task's head, made by the base's text tower where it is not in the cache yet.

    Args:
        base: a full CLIP model, in whose folder the tokenizer is.
        tasks: name -> task: its class names and templates.
        root: the cache folder.
        progress: called with heads done and heads to be made.

    Returns:
        name -> safetensors file with one tensor `head`, float32 [C, D], logit scale included.

    Raises:
        InputError: no tokenizer, or a prompt longer than the text tower's positions.
    """
    identity = (content_hash(base), tokenizer_hash(base))
    paths = {
        name: root / "heads" / f"{head_key(identity, task)}.safetensors"
        for name, task in tasks.items()
    }
    missing = {path: tasks[name] for name, path in paths.items() if not path.exists()}
    if missing:
        from safetensors.torch import save

        from fusion.zeroshot import zero_shot_head

        encoder = TextEncoder(base)
        for done, (path, task) in enumerate(missing.items()):
            sentences = encoder.embed(prompts(task), f"task {task.name!r}")
            classes = sentences.view(len(task.classnames), len(task.templates), -1)
            head = zero_shot_head(list(classes), encoder.logit_scale)
            check_rows(head, task.classnames, f"task {task.name!r}")
            with replacing(path) as part:
                part.write_bytes(save({"head": head.contiguous()}))
            if progress is not None:
                progress(done + 1, len(missing))
    return paths


def read_head(path: Path) -> Tensor:
    """A cached head: float32 [C, D], logit scale included.

    Raises:
        InputError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Read, not mapped: a head is small, and its file may be replaced.
        head: Tensor = load(path.read_bytes())["head"]
        return head
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: not a head: {one_line(error)}; delete it") from None


def head_key(identity: tuple[str, str], task: Task) -> str:
    """A hash of all that a head depends on."""
    return hash_text("head-1", identity, task.classnames, task.templates)


def tokenizer_hash(base: Checkpoint) -> str:
    """Content hash of the tokenizer's files.

    Raises:
        InputError: there is no tokenizer in the folder.
    """
    there = {name: base.folder / name for name in TOKENIZER_FILES}
    there = {name: file for name, file in there.items() if file.exists()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there.keys():
        raise InputError(
            f"{base.name}: {base.folder}: no tokenizer (tokenizer.json, or vocab.json and"
            " merges.txt); the base needs one, for the zero-shot heads"
        )
    for file in there.values():
        where = f"{base.name}: {file}"
        with reading(where):
            check_regular(file, where)
    return hash_files(there)


def read_tokenizer(base: Checkpoint) -> Any:
    """The tokenizer in a base's folder.

    Raises:
        InputError: it cannot be read.
    """
    from transformers import CLIPTokenizer

    tokenizer_hash(base)  # its files are there, and regular ones
    with reading(f"{base.name}: {base.folder}: the tokenizer cannot be read"):
        return CLIPTokenizer.from_pretrained(base.folder)


def check_prompts(base: Checkpoint, tasks: Mapping[str, Task]) -> None:
    """Raise InputError where the tokenizer cannot be read, or a prompt is too long for the tower.

    Of tasks with a zero-shot head; no weight is read.
    """
    words = [task for task in tasks.values() if task.source.head is None]
    if not words:
        return
    tokenizer, positions = read_tokenizer(base), text_positions(base)
    for task in words:
        texts = prompts(task)
        with reading(f"task {task.name!r}: the tokenizer of {base.folder}"):
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        check_lengths(texts, lengths, positions, f"task {task.name!r}")


def text_positions(base: Checkpoint) -> int:
    """Tokens of the longest prompt that the text tower takes.

    Raises:
        InputError: a configuration that says no positive whole number.
    """
    from actors.towers import clip_config

    return int(clip_config(base).text_config.max_position_embeddings)


def check_lengths(texts: Sequence[str], lengths: Sequence[int], positions: int, what: str) -> None:
    """Raise InputError where a prompt has more tokens than the tower has positions."""
    worst = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[worst] > positions:
        raise InputError(
            f"{what}: prompt {texts[worst]!r}: {lengths[worst]} tokens;"
            f" the text tower has {positions} positions"
        )


def prompts(task: Task) -> list[str]:
    """Every class in every template: class by class."""
    return [fill(template, name) for name in task.classnames for template in task.templates]


class TextEncoder:
    """The base's text tower, projection and logit scale, on the CPU in float32."""

    def __init__(self, base: Checkpoint) -> None:
        """Build and fill the tower.

        Raises:
            InputError: the tokenizer cannot be read, or weights are missing.
        """
        import torch
        from transformers import CLIPTextModel

        from actors.towers import TEXT_PREFIX, clip_config, empty, weights

        config = clip_config(base).text_config
        self.positions = int(config.max_position_embeddings)
        self.tower = empty(CLIPTextModel, config, "cpu", torch.float32)
        tensors = dict(read(base, base.rest))
        for name, memory in weights(self.tower).items():
            source = tensors.get(TEXT_PREFIX + name)
            if source is None or source.shape != memory.shape:
                fault = "missing" if source is None else f"shape {list(source.shape)}"
                raise InputError(
                    f"{base.name}: {base.folder}: tensor {TEXT_PREFIX + name}: {fault}"
                )
            memory.copy_(source)
        self.projection = tensors["text_projection.weight"].float()
        self.logit_scale = tensors["logit_scale"].float()
        self.tokenizer = read_tokenizer(base)

    def embed(self, texts: Sequence[str], what: str) -> Tensor:
        """Projected embeddings [len(texts), D], not normalised.

        Raises:
            InputError: a text of more tokens than the tower has positions.
        """
        import torch

        parts = []
        for start in range(0, len(texts), PROMPTS):
            batch = list(texts[start : start + PROMPTS])
            tokens = self.tokenizer(batch, padding=True, return_tensors="pt")
            check_lengths(batch, tokens["attention_mask"].sum(dim=1).tolist(), self.positions, what)
            with torch.inference_mode():
                out = self.tower(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
                parts.append(torch.nn.functional.linear(out.pooler_output, self.projection))
        return torch.cat(parts)
