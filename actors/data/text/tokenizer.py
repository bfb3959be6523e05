"""Tokenizers in a model's folder: their fingerprint, limits, and comparison of two of them.

Read by `transformers` from the tokenizer's own files alone, offline and without the folder's code.
Importable without `transformers`, which takes seconds to load.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.files.documents import parse_json
from actors.files.fingerprint import Fingerprint, fingerprint, software
from actors.files.hashes import hash_files
from actors.files.safetensors_header import check_regular
from fusion.errors import InputError, reading

MAIN = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
"""Files of which one at least holds the vocabulary."""

FILES = (
    *MAIN,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All files that a tokenizer is made from; of `config.json` the model's type alone is used."""

LARGEST = 64 << 20
"""Bytes of a file of a tokenizer at most; that of 262,144 tokens has 34 million."""

UNLIMITED = 1 << 20
"""A length from which `transformers` means that there is no limit."""


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, known by its files."""

    where: str
    """Member of the pool and folder, as messages begin."""
    files: tuple[Path, ...]
    model_type: str
    """Of `config.json`: it decides the tokenizer's class where the tokenizer's files do not."""
    fingerprint: Fingerprint
    """Of all these files, the model's type, and the libraries that read them."""

    def contents(self) -> dict[str, bytes]:
        """File name -> content, for processes that may not see the folder.

        Raises:
            InputError: a file that cannot be read.
        """
        with reading(f"{self.where}: the tokenizer cannot be read"):
            found = {file.name: file.read_bytes() for file in self.files}
        return {**found, "config.json": json.dumps({"model_type": self.model_type}).encode()}

    def load(self) -> Any:
        """The tokenizer of `transformers`; kept, as long as no other four are loaded.

        Raises:
            InputError: it cannot be read.
        """
        with reading(f"{self.where}: the tokenizer cannot be read"):
            return loaded(self.fingerprint, tuple(sorted(self.contents().items())))

    def copy_to(self, folder: Path) -> None:
        """Copy the tokenizer's own files into a model's folder."""
        for file in self.files:
            (folder / file.name).write_bytes(file.read_bytes())

    def limit(self, otherwise: int) -> int:
        """Tokens of the longest row, as the tokenizer's files say; `otherwise`: they do not.

        Raises:
            InputError: it cannot be read, or is no whole number of at least 1.
        """
        file = next((file for file in self.files if file.name == "tokenizer_config.json"), None)
        if file is None:
            return otherwise
        with reading(f"{self.where}: {file.name}"):
            stated = parse_json(file.read_bytes(), str(file)).get("model_max_length", otherwise)
        whole = isinstance(stated, int | float) and stated >= 1 and int(stated) == stated
        if isinstance(stated, bool) or not whole:
            raise InputError(
                f"{self.where}: {file.name}: model_max_length: {stated!r}; a whole number of at"
                " least 1 needed"
            )
        return otherwise if stated >= UNLIMITED else int(stated)


@lru_cache(maxsize=4)
def loaded(name: Fingerprint, contents: tuple[tuple[str, bytes], ...]) -> Any:
    """A tokenizer from a folder that holds these files alone.

    Raises:
        Exception: of any kind, where a file is damaged.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
        for file, content in contents:
            (Path(folder) / file).write_bytes(content)
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    if not getattr(found, "is_fast", False):
        raise ValueError(f"{type(found).__name__} is not of the library `tokenizers`")
    return found


def open_tokenizer(folder: Path, name: str) -> TextTokenizer:
    """The tokenizer in a model's folder; nothing is read but to be hashed.

    Args:
        folder: the model's.
        name: of the model, as messages begin: "pool.base".

    Raises:
        InputError: the folder holds no tokenizer, or a file of it that cannot be used.
    """
    found = known_tokenizer(folder, name)
    if found is None:
        raise InputError(f"{name}: {folder}: no tokenizer; one of {', '.join(MAIN)} needed")
    return found


def known_tokenizer(folder: Path, name: str) -> TextTokenizer | None:
    """The tokenizer in a model's folder; None: it holds none.

    Raises:
        InputError: a file of it that cannot be used.
    """
    where = f"{name}: {folder}"
    files = tuple(folder / file for file in FILES if (folder / file).exists())
    if not {file.name for file in files} & set(MAIN):
        return None
    for file in files:
        with reading(f"{name}: {file}"):
            check_regular(file, f"{name}: {file}")
            size = file.stat().st_size
        if size > LARGEST:
            raise InputError(f"{name}: {file}: {size:,} bytes; {LARGEST:,} at most are read")
    model_type = type_of(folder / "config.json", name)
    content = hash_files({file.name: file for file in files})
    libraries = software("transformers", "tokenizers")
    identity = fingerprint("text-tokenizer-1", content, model_type, libraries)
    return TextTokenizer(where, files, model_type, identity)


def type_of(config: Path, name: str) -> str:
    """`model_type` of a model's configuration; empty without a configuration."""
    if not config.is_file():
        return ""
    with reading(f"{name}: {config}"):
        found = parse_json(config.read_bytes(), str(config))
    return str(found.get("model_type", "")) if isinstance(found, Mapping) else ""


def difference(base: TextTokenizer, other: TextTokenizer | None) -> str | None:
    """How a member's tokenizer differs from the base's, in words; None: not at all.

    A member without a tokenizer of its own uses the base's.

    Raises:
        InputError: one that cannot be read.
    """
    if other is None or other.fingerprint == base.fingerprint:
        return None
    first, second = base.load(), other.load()
    tokens = [
        [token for token, _ in sorted(each.get_vocab().items(), key=lambda item: item[1])]
        for each in (first, second)
    ]
    counts = f"{len(tokens[1]):,} tokens, the base has {len(tokens[0]):,}"
    for at, (ours, theirs) in enumerate(zip(*tokens, strict=False)):
        if ours != theirs:
            return f"tokenizer: token {at} is {theirs!r}, in the base {ours!r}; {counts}"
    if len(tokens[0]) != len(tokens[1]):
        return f"tokenizer: {counts}"
    rules = [json.loads(each.backend_tokenizer.to_str()) for each in (first, second)]
    for part in ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens"):
        if rules[0].get(part) != rules[1].get(part):
            return f"tokenizer: its {part} is not the base's; {counts}"
    return None


def check_vocabulary(tokenizer: TextTokenizer, rows: int) -> None:
    """Raise InputError where a tokenizer has tokens that a table of embeddings has no row for."""
    highest = max(tokenizer.load().get_vocab().values())
    if highest >= rows:
        raise InputError(
            f"{tokenizer.where}: the tokenizer's tokens go to {highest:,}; the model's table has"
            f" {rows:,} rows"
        )
