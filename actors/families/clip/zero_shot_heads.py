"""Heads [C, D] of tasks: zero-shot heads made by the base's text tower, or given files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.artifacts.head_file import check_head, check_rows, content_name, sound
from actors.checkpoints.checkpoint import Checkpoint, content_hash, is_hashed, owner, read
from actors.data.prompts import fill
from actors.data.task import Task
from actors.families.clip.architecture import PROJECTION, text_fields
from actors.files.atomic import replacing
from actors.files.cache_dir import cache_dir
from actors.files.checksums import sealed
from actors.files.fingerprint import Fingerprint, fingerprint, software
from actors.files.hashes import hash_files
from actors.files.safetensors_header import check_regular
from fusion.errors import InputError, reading
from fusion.task_vectors.task_vectors import check_finite

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
"""Files of a tokenizer; `tokenizer.<version>.json` and the model's configuration are used too."""

PROMPTS = 256
"""Prompts in a forward pass."""


def task_heads(base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
    """Each task's head in the cache: a copy of the file it names, else its zero-shot head.

    A copy is named by its content: replacing the file during a sweep has no effect, and nodes that
    do not see it receive the copy like any other file of the cache.

    Raises:
        InputError: see `check_head` and `zero_shot_heads`.
    """
    words = {name: task for name, task in tasks.items() if task.source.head is None}
    found = zero_shot_heads(base, words, root) if words else {}
    for name, file in given_heads(base, tasks).items():
        data = file.read_bytes()
        found[name] = root / "heads" / f"{content_name(data)}.safetensors"
        if not sound(found[name]):
            with replacing(found[name]) as part:
                part.write_bytes(data)
    return {name: found[name] for name in tasks}


def check_heads(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
    """Check the head files that tasks name, and the tokenizer for the other heads.

    Raises:
        InputError: see `check_head`; or no tokenizer in the base's folder, if one is needed.
    """
    given = given_heads(base, tasks)
    if len(given) < len(tasks):
        open_tokenizer(base)
    return given


def given_heads(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
    """The head files that tasks name.

    Raises:
        InputError: see `check_head`.
    """
    found = {}
    for name, task in tasks.items():
        if task.source.head is not None:
            found[name] = Path(task.source.head).expanduser()
            named = (base.name, content_hash(base))
            width = base.tensors[PROJECTION].shape[0]
            check_head(found[name], f"tasks.{name}.head", named, width, task.classnames)
    return found


def head_fingerprints(base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Fingerprint]:
    """Fingerprint of each task's head: of its file, or of everything its zero-shot head depends on.

    Raises:
        InputError: no tokenizer in the base's folder, or a head file that is refused.
    """
    given = given_heads(base, tasks)
    words = {name: task for name, task in tasks.items() if name not in given}
    tokenizer = open_tokenizer(base) if words else None
    return {
        name: fingerprint("head-file", hash_files({"head": given[name]}))
        if tokenizer is None or name in given
        else zero_shot_fingerprint(base, tokenizer, task)
        for name, task in tasks.items()
    }


def zero_shot_fingerprint(base: Checkpoint, tokenizer: Tokenizer, task: Task) -> Fingerprint:
    """Fingerprint of a zero-shot head's origins: text tower, tokenizer, prompts, libraries."""
    libraries = software("torch", "transformers", "tokenizers")
    words = [list(task.classnames), list(task.templates)]
    return fingerprint("head-3", base.fingerprint, tokenizer.fingerprint, *words, libraries)


def head_path(base: Checkpoint, tokenizer: Tokenizer, task: Task, root: Path) -> Path:
    """File of a zero-shot head in the cache folder `root`."""
    return root / "heads" / f"{zero_shot_fingerprint(base, tokenizer, task)}.safetensors"


def zero_shot_heads(
    base: Checkpoint,
    tasks: Mapping[str, Task],
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Make the zero-shot heads that are missing or damaged in the cache.

    Args:
        base: a full CLIP model, whose folder holds the tokenizer.
        tasks: name -> task: its class names and templates.
        root: the cache folder.
        progress: called with the heads done and the total of heads to make.

    Returns:
        name -> safetensors file with one tensor `head`, float32 [C, D], logit scale included.

    Raises:
        InputError: no tokenizer, or a prompt longer than the text tower's positions.
    """
    tokenizer = open_tokenizer(base)
    paths = {name: head_path(base, tokenizer, task, root) for name, task in tasks.items()}
    missing = {path: tasks[name] for name, path in paths.items() if not sound(path)}
    if missing:
        from fusion.logits.cosine_head import zero_shot_head

        encoder = TextEncoder(base, tokenizer)
        for done, (path, task) in enumerate(missing.items()):
            sentences = encoder.embed(prompts(task), f"task {task.name!r}")
            classes = sentences.view(len(task.classnames), len(task.templates), -1)
            head = zero_shot_head(list(classes), encoder.logit_scale)
            check_rows(head, task.classnames, f"task {task.name!r}")
            with replacing(path) as part:
                part.write_bytes(sealed({"head": head.contiguous()}, {}))
            if progress is not None:
                progress(done + 1, len(missing))
    return paths


@dataclass(frozen=True)
class Tokenizer:
    """A base's tokenizer, known from its files."""

    files: Mapping[str, Path]
    fingerprint: Fingerprint
    """Fingerprint of all these files; `load` reads no others."""

    def load(self) -> Any:
        """Load the tokenizer from a folder that holds only these files.

        Raises:
            Exception: any exception of `tokenizers` on a damaged file.
        """
        from transformers import CLIPTokenizer

        with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
            for name, file in self.files.items():
                (Path(folder) / name).symlink_to(file.resolve())
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def open_tokenizer(base: Checkpoint) -> Tokenizer:
    """Hash the files of the tokenizer in the base's folder; does not load it.

    Raises:
        InputError: the folder holds no tokenizer.
    """
    found = known_tokenizer(base)
    if found is None:
        raise InputError(
            f"{base.name}: {base.folder}: no tokenizer (tokenizer.json, or vocab.json and"
            " merges.txt); the base needs one, for the zero-shot heads"
        )
    return found


def known_tokenizer(base: Checkpoint) -> Tokenizer | None:
    """As `open_tokenizer`, or None if the folder holds no tokenizer.

    Raises:
        InputError: one of its files is not a regular file.
    """
    found = {
        file.name: file
        for pattern in TOKENIZER_FILES
        for file in sorted(base.folder.glob(pattern))
        if file.is_file()
    }
    if "tokenizer.json" not in found and not {"vocab.json", "merges.txt"} <= found.keys():
        return None
    for file in found.values():
        where = f"{base.name}: {file}"
        with reading(where):
            check_regular(file, where)
    return Tokenizer(found, fingerprint("tokenizer-1", hash_files(found)))


def read_tokenizer(base: Checkpoint, tokenizer: Tokenizer) -> Any:
    """Load a base's tokenizer.

    Raises:
        InputError: it cannot be read.
    """
    with reading(f"{base.name}: {base.folder}: the tokenizer cannot be read"):
        return tokenizer.load()


def check_prompts(base: Checkpoint, tasks: Mapping[str, Task]) -> None:
    """Raise InputError if the tokenizer cannot be read, or a prompt is too long for the text tower.

    Checks the tasks with a zero-shot head that is not in the cache; reads no weight.
    """
    words = [task for task in tasks.values() if task.source.head is None]
    if not words:
        return
    files = open_tokenizer(base)
    if is_hashed(base):
        words = [each for each in words if not sound(head_path(base, files, each, cache_dir()))]
    if not words:
        return
    tokenizer, positions = read_tokenizer(base, files), text_positions(base)
    for task in words:
        texts = prompts(task)
        with reading(f"task {task.name!r}: the tokenizer of {base.folder}"):
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        check_lengths(texts, lengths, positions, f"task {task.name!r}")


def text_positions(base: Checkpoint) -> int:
    """Largest number of tokens of a prompt for the text tower.

    Raises:
        InputError: see `text_fields`.
    """
    fields = text_fields(base.config, f"{base.name}: {base.folder / 'config.json'}")
    return int(fields["max_position_embeddings"])


def check_lengths(texts: Sequence[str], lengths: Sequence[int], positions: int, what: str) -> None:
    """Raise InputError where a prompt has more tokens than the tower has positions."""
    worst = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[worst] > positions:
        raise InputError(
            f"{what}: prompt {texts[worst]!r}: {lengths[worst]} tokens;"
            f" the text tower has {positions} positions"
        )


def prompts(task: Task) -> list[str]:
    """Prompts of every class in every template, class by class."""
    return [fill(template, name) for name in task.classnames for template in task.templates]


class TextEncoder:
    """The base's text tower, projection and logit scale, on the CPU in float32."""

    def __init__(self, base: Checkpoint, tokenizer: Tokenizer) -> None:
        """Build the tower and load its weights.

        Raises:
            InputError: the tokenizer cannot be read, or a weight is missing, NaN or infinite.
        """
        import torch
        from transformers import CLIPTextModel

        from actors.families.clip.build import TEXT_PREFIX, clip_config, empty, weights

        config = clip_config(base).text_config
        self.positions = int(config.max_position_embeddings)
        self.tower = empty(CLIPTextModel, config, "cpu", torch.float32)
        tensors = dict(read(base, base.rest))
        for name, tensor in tensors.items():
            check_finite(tensor, name, owner(base, name))
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
        self.tokenizer = read_tokenizer(base, tokenizer)

    def embed(self, texts: Sequence[str], what: str) -> Tensor:
        """Projected embeddings [len(texts), D], not normalised.

        Raises:
            InputError: a text with more tokens than the tower has positions.
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
