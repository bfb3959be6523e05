"""The embedded text pool's tokenizer: a token a word."""

from __future__ import annotations

from pathlib import Path

from actors.embedded.text.tasks import vocabulary

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""Special tokens, in the order of their ids, as in T5."""


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files, as transformers loads them, into an existing folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate((PAD, END, UNKNOWN, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words[END])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=64,
    ).save_pretrained(folder)
