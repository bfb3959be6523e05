"""Inputs of BERT and RoBERTa: the texts of a row, tokenised as a text and its pair."""

from __future__ import annotations

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import open_tokenizer
from actors.families.bert.architecture import longest


def bert_inputs(base: Checkpoint) -> TextInputs:
    """Texts of the task's columns: the first, and as its pair the others.

    Raises:
        InputError: no tokenizer, or one without a usable limit.
    """
    most = longest(base.fields)
    tokenizer = open_tokenizer(base.folder, base.name)
    limit = min(most, tokenizer.limit(most))
    return TextInputs(tokenizer, limit, base.fields["pad_token_id"], words="fields")
