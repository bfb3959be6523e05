"""Trees of a task's answers: what a decoder reads to score all of them in one pass.

An answer is the tokens of a class's target, with the end token. Its proper prefixes are nodes: the
root is the decoder's start token, and answers that begin alike share nodes. The state at a node
gives the probabilities of the token after that prefix. Nodes come before their descendants; the
root is node 0.

Axes: C classes, L tokens of the longest answer, m nodes, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.data.protocol import AVERAGED, Activations

NONE = -1
"""In place of a token: after the end of an answer."""

LAST = "last"
"""Activation of rows whose next token is asked for."""


@dataclass(frozen=True, eq=False)
class AnswerTree:
    """The tree of one task's answers."""

    nodes: Tensor
    """int64 [m], the token of each node."""
    depth: Tensor
    """int64 [m], tokens before it."""
    ancestors: Tensor
    """bool [m, m]: whether node j is node i, or before it on its way from the root."""
    answers: Tensor
    """int64 [C, L], as given."""
    prefixes: Tensor
    """int64 [C, L], the node before each token of an answer; 0 after the answer's end."""

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        first = self.answers[0]
        return int(first[first != NONE][-1])


trees: dict[tuple[bytes, tuple[int, ...], int], AnswerTree] = {}
"""Trees by content: batches of one task share one."""


def answer_tree(answers: Tensor, start: int) -> AnswerTree:
    """The tree of answers int [C, L], each ended by -1s; made once for equal answers.

    >>> tree = answer_tree(torch.tensor([[3, 1, -1], [3, 5, 1]]), start=0)
    >>> tree.nodes.tolist(), tree.depth.tolist(), tree.prefixes.tolist()
    ([0, 3, 5], [0, 1, 2], [[0, 1, 0], [0, 1, 2]])
    """
    tokens = answers.to(torch.int64).cpu().contiguous().numpy()
    key = (tokens.tobytes(), tokens.shape, start)
    if key not in trees:
        trees[key] = grown(tokens, start)
    return trees[key]


def grown(answers: NDArray[np.int64], start: int) -> AnswerTree:
    """See `answer_tree`."""
    found: dict[tuple[int, ...], int] = {(): 0}
    prefixes = np.zeros_like(answers)
    for row, tokens in zip(prefixes, answers, strict=True):
        for at in range(int((tokens != NONE).sum())):
            row[at] = found.setdefault(tuple(tokens[:at].tolist()), len(found))
    ancestors = torch.zeros(len(found), len(found), dtype=torch.bool)
    for prefix, node in found.items():
        for stop in range(len(prefix) + 1):
            ancestors[node, found[prefix[:stop]]] = True
    return AnswerTree(
        torch.tensor([prefix[-1] if prefix else start for prefix in found]),
        torch.tensor([len(prefix) for prefix in found]),
        ancestors,
        torch.from_numpy(answers.copy()),
        torch.from_numpy(prefixes),
    )


def collated(
    trees_of: Sequence[tuple[AnswerTree, int]], averaged: Sequence[Tensor | None] = ()
) -> Activations:
    """Trees of the rows of a batch, padded to the largest.

    Args:
        trees_of: (tree, number of rows), in the order of the rows.
        averaged: of each tree, the number of its rows' group, int64 [rows]; None: their logits are
            not averaged. Default: none are.

    Returns:
        `nodes`, `depth` int64 [B, m], `node_mask` bool [B, m], `tree` bool [B, m, m], `answers`,
        `prefixes` int64 [B, C, L]. A padded node sees itself alone. If logits of some rows are
        averaged, also `averaged` int64 [B], −1 for other rows; and the last node is padding that
        has, in rows that are averaged, the token that ends an answer: a decoder that starts there.
    """
    groups = [
        torch.full((rows,), NONE) if group is None else group
        for (_, rows), group in zip(trees_of, averaged or [None] * len(trees_of), strict=True)
    ]
    spare = any(bool((group != NONE).any()) for group in groups)
    nodes = max(len(tree.nodes) for tree, _ in trees_of) + spare
    classes, longest = (max(tree.answers.shape[i] for tree, _ in trees_of) for i in range(2))
    parts = []
    for tree, rows in trees_of:
        m, (c, length) = len(tree.nodes), tree.answers.shape
        seen = torch.eye(nodes, dtype=torch.bool)
        seen[:m, :m] = tree.ancestors
        given = torch.full((classes, longest), NONE)
        given[:c, :length] = tree.answers
        before = torch.zeros_like(given)
        before[:c, :length] = tree.prefixes
        row = {
            "nodes": padded(tree.nodes, nodes),
            "node_mask": torch.arange(nodes) < m,
            "depth": padded(tree.depth, nodes),
            "tree": seen,
            "answers": given,
            "prefixes": before,
        }
        parts.append({k: v.expand(rows, *v.shape) for k, v in row.items()})
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if spare:
        found[AVERAGED] = torch.cat(groups)
        ends = torch.cat([torch.full((rows,), tree.end) for tree, rows in trees_of])
        found["nodes"][:, -1] = torch.where(found[AVERAGED] == NONE, 0, ends)
    return found


def continued(prefixes: Sequence[Tensor], start: int) -> Activations:
    """Chains of the tokens that rows have written, int64 [B, t] each: as `collated`, and `last`
    int64 [B], the node whose next token is asked for. There are no answers."""
    written = torch.cat(list(prefixes))
    nodes = torch.nn.functional.pad(written, (1, 0), value=start)
    rows, m = nodes.shape
    return {
        "nodes": nodes,
        "node_mask": torch.ones_like(nodes, dtype=torch.bool),
        "depth": torch.arange(m).expand(rows, m),
        "tree": torch.ones(m, m, dtype=torch.bool).tril().expand(rows, m, m),
        "answers": torch.full((rows, 1, 1), NONE),
        "prefixes": torch.zeros(rows, 1, 1, dtype=torch.int64),
        LAST: torch.full((rows,), m - 1),
    }


def padded(values: Tensor, size: int) -> Tensor:
    """A vector with zeros after its end."""
    return torch.nn.functional.pad(values, (0, size - len(values)))
