"""Small tokenizers and text data sets in folders, made without a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>", "<unk>")
"""Ids 0, 1 and 2, as of T5."""


def write_tokenizer(folder: Path, words: Sequence[str], limit: int = 32) -> Path:
    """A word-level tokenizer like T5's: `</s>` after each text."""
    vocabulary = {token: at for at, token in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=limit, **names)
    whole.save_pretrained(folder)
    return folder


def write_texts(
    folder: Path,
    splits: Mapping[str, Mapping[str, Sequence[Any]]],
    names: Sequence[str] | None = None,
) -> Path:
    """A data set: split -> column -> values, parquet in the hub's layout; `names`: ClassLabel."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, columns in splits.items():
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        if names is not None:
            features = {"label": {"names": list(names), "_type": "ClassLabel"}}
            about = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": about})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
