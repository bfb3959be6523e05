"""T5's inputs: rows of tokenised prompts, and the tree of the answers of each row's task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.data.protocol import PREFIX, Activations
from actors.data.text.inputs import TextInputs

if TYPE_CHECKING:  # torch takes seconds to load, and processes that only prepare need none of it
    from torch import Tensor

ANSWERS = "answers"
"""Column of prepared rows: the task's answers [B, C, L], the same for all rows of a file."""


@dataclass(frozen=True)
class T5Inputs(TextInputs):
    """`Inputs` of a T5: those of a tokenizer, with answers, collated for both sides."""

    start: int = 0
    """Token that the decoder starts from."""

    def collate(self, parts: Sequence[Mapping[str, Tensor]]) -> Activations:
        """`ids` int64 [B, n] and `mask` bool [B, n], padded to the longest row of the batch, and
        the trees of `answers.collated`; with prefixes, `answers.continued`."""
        from actors.data.text.answers import answer_tree, collated, continued

        found = super().collate(parts)
        source = {name: found[name] for name in ("ids", "mask")}
        if PREFIX in parts[0]:
            return source | continued([part[PREFIX] for part in parts], self.start)
        trees = [
            (answer_tree(part[ANSWERS][0], self.start), len(part["ids.lengths"])) for part in parts
        ]
        return source | collated(trees)
