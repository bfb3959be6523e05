"""Sentence encoders: transformers whose token states, averaged over a text, a gate reads.

Folders as `sentence-transformers` writes them (`modules.json`: Transformer, Pooling by the mean,
Normalize) and plain encoders are read by `transformers` alone. Axes: B rows, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from actors.checkpoints.checkpoint import headers, load_config
from actors.data.protocol import Activations, Extract
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenise import Words
from actors.data.text.tokenizer import check_vocabulary, open_tokenizer
from actors.files.documents import parse_json, read_bytes, read_json, shown
from actors.files.paths import inside
from fusion.errors import InputError, reading

MODULES = "modules.json"
"""What a folder of `sentence-transformers` has."""

TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "albert", "electra")
"""`model_type` of the transformers that are read."""

SHIFTED = ("roberta", "xlm-roberta", "mpnet")
"""Those whose positions begin after that of padding."""

TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"

LIBRARY = "sentence_transformers."
"""How the types of modules begin; a module of another library may compute anything."""

ORDERS = ([TRANSFORMER, POOLING], [TRANSFORMER, POOLING, NORMALIZE])
"""Chains of modules that are read."""

MEAN = "pooling_mode_mean_tokens"


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder on disk, known by its configuration and headers."""

    folder: Path
    """Of the transformer."""
    config: Mapping[str, Any]
    normalised: bool
    """Whether features are divided by their length."""
    limit: int | None
    """Tokens of a text at most, as `sentence_bert_config.json` says; None: it does not."""
    files: tuple[Path, ...]
    """All that features depend on, the tokenizer left out."""

    @property
    def width(self) -> int:
        """d."""
        return int(self.config[width_name(self.config)])

    def inputs(self, words: Words, what: str) -> TextInputs:
        """Texts, cut to the shortest of the limits of encoder, tokenizer and positions.

        Raises:
            InputError: no tokenizer, or one with more tokens than the model.
        """
        tokenizer = open_tokenizer(self.folder, what)
        check_vocabulary(tokenizer, self.config["vocab_size"])
        pad = self.config.get("pad_token_id") or 0
        before = pad + 1 if self.config["model_type"] in SHIFTED else 0
        positions = self.config["max_position_embeddings"] - before
        limits = [positions, tokenizer.limit(positions), *([self.limit] if self.limit else [])]
        return TextInputs(tokenizer, min(limits), pad, words)

    def load(self, device: Any, what: str) -> Extract:
        """Mean over the real tokens of the last states, in float32.

        Raises:
            InputError: weights that are missing.
        """
        from transformers import AutoModel

        from actors.training.optimizer_loop import quiet

        with reading(f"{what}: {self.folder}"), quiet():
            model, found = AutoModel.from_pretrained(
                self.folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if missing := sorted(key for key in found["missing_keys"] if "pooler" not in key):
            raise InputError(f"{what}: {self.folder}: tensor {missing[0]!r}: missing")
        model = model.to(device).eval().requires_grad_(False)
        typed = self.config.get("type_vocab_size", 0) > 1

        def forward(given: Activations) -> Tensor:
            moved = {name: value.to(device) for name, value in given.items()}
            types = {"token_type_ids": moved["types"]} if typed and "types" in moved else {}
            states = model(
                input_ids=moved["ids"], attention_mask=moved["mask"].long(), **types
            ).last_hidden_state
            mean = masked_mean(states, moved["mask"])
            return normalize(mean, dim=1) if self.normalised else mean

        return forward


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states [B, n, d] over the tokens where `mask` [B, n] is True: [B, d].

    >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> masked_mean(states, torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def is_sentence_encoder(folder: Path) -> bool:
    """Whether a folder is one of `sentence-transformers`."""
    return (folder / MODULES).is_file()


def open_sentence_encoder(folder: Path, what: str) -> SentenceEncoder:
    """The sentence encoder in a folder; no weight is read.

    Args:
        folder: with `modules.json`, or of a plain encoder, which is averaged and not normalised.
        what: how messages begin.

    Raises:
        InputError: a module of an unknown kind, another pooling than the mean, a transformer of
            another kind; no safetensors.
    """
    if is_sentence_encoder(folder):
        paths, files = modules(folder, what), [folder / MODULES]
    else:
        paths, files = {TRANSFORMER: folder}, []
    inner = paths[TRANSFORMER]
    if POOLING in paths:
        files.append(check_pooling(paths[POOLING], what))
    limit, stated = limit_of(inner, what)
    config = load_config(inner, what, TYPES)
    file = inner / "config.json"
    if config.get("model_type") not in TYPES:
        allowed = ", ".join(TYPES)
        raise InputError(
            f"{what}: {file}: model_type {shown(config.get('model_type'))}; allowed: {allowed}"
        )
    check_config(config, f"{what}: {file}")
    found = headers(inner, config, what, "AutoModel")
    files += [*stated, file, *sorted({info.file for info in found.values()})]
    return SentenceEncoder(inner, config, NORMALIZE in paths, limit, tuple(files))


def modules(folder: Path, what: str) -> dict[str, Path]:
    """Kind of module -> its folder, of `modules.json`.

    Raises:
        InputError: not a list of modules, or others than transformer, pooling and normalisation.
    """
    file = folder / MODULES
    listed = parse_json(read_bytes(file, what), f"{what}: {file}")
    if not isinstance(listed, list):
        raise InputError(f"{what}: {file}: {shown(listed)}; a list of modules needed")
    kinds: list[str] = []
    paths: dict[str, Path] = {}
    for each in listed:
        if not isinstance(each, Mapping) or not isinstance(each.get("type"), str):
            raise InputError(f"{what}: {file}: {shown(each)}; a module with a type needed")
        kinds.append(each["type"].rpartition(".")[2])
        path = each.get("path", "")
        paths[kinds[-1]] = inside(folder, str(path), f"{what}: {file}: path") if path else folder
        foreign = not each["type"].startswith(LIBRARY)
        if foreign or kinds[-1] not in (TRANSFORMER, POOLING, NORMALIZE):
            shown_kind = each["type"] if foreign else kinds[-1]
            raise InputError(
                f"{what}: {file}: module {shown_kind[:80]!r}; {TRANSFORMER}, {POOLING}, {NORMALIZE}"
                f" of {LIBRARY.rstrip('.')} allowed"
            )
    if kinds not in ORDERS:
        raise InputError(
            f"{what}: {file}: modules {', '.join(kinds)}; {TRANSFORMER}, {POOLING} and, last,"
            f" {NORMALIZE} needed"
        )
    return paths


def check_pooling(folder: Path, what: str) -> Path:
    """The pooling's configuration, checked.

    Raises:
        InputError: another pooling than the mean over tokens.
    """
    file = folder / "config.json"
    given = read_json(file, what)
    modes = [key for key, value in given.items() if key.startswith("pooling_mode_") and value]
    if modes != [MEAN] and given.get("pooling_mode") != "mean":
        raise InputError(
            f"{what}: {file}: {', '.join(modes)[:200] or 'no pooling'}; {MEAN} alone allowed"
        )
    return file


def limit_of(folder: Path, what: str) -> tuple[int | None, list[Path]]:
    """`max_seq_length` of `sentence_bert_config.json`, and that file where there is one.

    Raises:
        InputError: no whole number of at least 1; texts that are lowered before the tokenizer.
    """
    file = folder / "sentence_bert_config.json"
    if not file.is_file():
        return None, []
    given = read_json(file, what)
    limit = given.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(
            f"{what}: {file}: max_seq_length: {shown(limit)}; a whole number of at least 1 needed"
        )
    if given.get("do_lower_case"):
        raise InputError(
            f"{what}: {file}: do_lower_case: true; false allowed: texts are given to the tokenizer"
            " as they are"
        )
    return limit, [file]


def width_name(config: Mapping[str, Any]) -> str:
    """The field that states the width of hidden states."""
    return "dim" if config["model_type"] == "distilbert" else "hidden_size"


def check_config(config: Mapping[str, Any], file: str) -> None:
    """Raise InputError where sizes that are needed are no whole numbers of at least 1."""
    for name in ("vocab_size", width_name(config), "max_position_embeddings"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise InputError(
                f"{file}: {name}: {shown(config.get(name))}; a whole number of at least 1 needed"
            )
