"""T5's inputs: rows of tokenised prompts, and the tree of the answers of each row's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import AVERAGED, PREFIX, Activations
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import open_tokenizer

if TYPE_CHECKING:  # torch takes seconds to load, and processes that only prepare need none of it
    from torch import Tensor

LONGEST = 512
"""Tokens of a prompt at most, where the tokenizer's files do not say."""

ANSWERS = "answers"
"""Column of prepared rows: the task's answers [B, C, L], the same for all rows of a file."""


@dataclass(frozen=True)
class T5Inputs(TextInputs):
    """`Inputs` of a T5: those of a tokenizer, with answers, collated for both sides."""

    start: int = 0
    """Token that the decoder starts from."""

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """`ids` int64 [B, n] and `mask` bool [B, n], padded to the longest row of the batch, and
        the trees of `answers.collated`; with prefixes, `answers.continued`.

        With rows that are `averaged`, the last node of each tree is one more beginning for them.
        """
        from actors.data.text.answers import answer_tree, collated, continued

        found = super().collate(parts)
        source = {name: found[name] for name in ("ids", "mask")}
        if PREFIX in parts[0]:
            return source | continued([part[PREFIX] for part in parts], self.start)
        trees = [
            (answer_tree(part[ANSWERS][0], self.start), len(part["ids.lengths"])) for part in parts
        ]
        return source | collated(trees, [part.get(AVERAGED) for part in parts])


def t5_inputs(base: Checkpoint) -> T5Inputs:
    """Prompts, and the trees of answers."""
    tokenizer, fields = open_tokenizer(base.folder, base.name), base.fields
    return T5Inputs(
        tokenizer,
        tokenizer.limit(LONGEST),
        fields["pad_token_id"],
        answers=True,
        start=fields["decoder_start_token_id"],
    )
