"""BERT and RoBERTa checkpoints: sort a file's tensors into encoder, pooler and classifier.

Canonical names are those of `BertModel` and of the classifier, whatever version of `transformers`
wrote the file. What pretraining left (`cls.`, `lm_head.`) is not read: no classifier has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.checkpoints.checkpoint import Checkpoint, TensorInfo, headers
from actors.families.bert.architecture import (
    DENSE,
    OUT,
    ROBERTA,
    bert_fields,
    canonical,
    encoder_tensors,
)
from actors.families.labels import labels_of
from actors.families.tensors import by_name, check_there, shaped
from actors.files.documents import shown
from fusion.errors import InputError

LEFT = ("cls.", "lm_head.")
"""Heads of pretraining."""

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""0, 1, 2, … and zeros: buffers of old files, which nothing reads."""

CLASSIFIES = "ForSequenceClassification"


def inspected(source: str, folder: Path, config: Mapping[str, Any], name: str) -> Checkpoint:
    """The encoder in a folder, with pooler and classifier where it has them, by its headers.

    Its `fields` are the configuration's (see `bert_fields`), and `labels`: the names of its
    classes, none without a classifier.

    Raises:
        InputError: missing, unknown or mis-shaped tensors, a classifier of tokens; see also
            `headers`, `bert_fields` and `labels_of`.
    """
    found = headers(folder, config, name, "BertForSequenceClassification")
    file = f"{name}: {folder / 'config.json'}"
    fields = bert_fields(config, file)
    kind = fields["model_type"]
    tensors = sort_out(found, kind, name)
    classes = class_count(tensors, kind)
    if classes:
        check_classifies(config, file)
    fields["labels"] = labels_of(config, classes, file) if classes else ()
    shapes = {**encoder_tensors(fields), **head_tensors(fields, tensors)}
    check_there(shapes, found, tensors, name)
    ordered = shaped(tensors, shapes, name, folder)
    return Checkpoint(name, source, folder, config, ordered, {}, {}, fields=fields)


def sort_out(found: Mapping[str, TensorInfo], kind: str, name: str) -> dict[str, TensorInfo]:
    """Tensors of the model under canonical names; buffers and heads of pretraining are left out.

    RoBERTa's pooler is left out, too: its classifier does not read it.

    Raises:
        InputError: a tensor under two names.
    """

    def unused(short: str) -> bool:
        pooler = short.startswith("pooler.") and kind == ROBERTA
        return pooler or short in BUFFERS or short.startswith(LEFT)

    shorts = ((canonical(key), info) for key, info in found.items())
    return by_name(((short, info) for short, info in shorts if not unused(short)), name)


def class_count(tensors: Mapping[str, TensorInfo], kind: str) -> int:
    """C, the rows of the classifier; 0 without one."""
    info = tensors.get(f"{OUT[kind]}.weight")
    return info.shape[0] if info is not None and info.shape else 0


def head_tensors(
    fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the tensors of pooler and classifier, as far as they are there.

    A part is there if one of its tensors is, and with a classifier all of them are.
    """
    width, kind, classes = fields["hidden_size"], fields["model_type"], len(fields["labels"])
    dense = {f"{DENSE[kind]}.weight": (width, width), f"{DENSE[kind]}.bias": (width,)}
    out = {f"{OUT[kind]}.weight": (classes, width), f"{OUT[kind]}.bias": (classes,)}
    if classes or not out.keys().isdisjoint(tensors):
        return {**dense, **out}
    return {} if dense.keys().isdisjoint(tensors) else dense


def check_classifies(config: Mapping[str, Any], file: str) -> None:
    """Raise InputError where a configuration names another kind of classifier, of tokens say."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        return
    if not str(named[0]).endswith(CLASSIFIES):
        raise InputError(
            f"{file}: architectures: {shown(named)}; a classifier of sequences"
            f" (…{CLASSIFIES}) needed"
        )
