"""Trees of answers: prefixes are nodes, each once; padded beside other tasks' trees."""

from __future__ import annotations

import torch

from actors.data.text.answers import answer_tree, collated

MANY = torch.tensor([[5, 7, 8, 1], [5, 7, 1, -1], [9, 1, -1, -1]])
ONE = torch.tensor([[4, 1], [3, 1]])


def test_answers_that_begin_alike_share_nodes():
    tree = answer_tree(MANY, start=0)
    assert tree.nodes.tolist() == [0, 5, 7, 8, 9]
    assert tree.depth.tolist() == [0, 1, 2, 3, 1]
    assert tree.prefixes.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 4, 0, 0]]
    assert tree.ancestors.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_a_chain_is_causal():
    tree = answer_tree(torch.tensor([[3, 4, 5, 1]]), start=2)
    assert tree.nodes.tolist() == [2, 3, 4, 5]
    assert torch.equal(tree.ancestors, torch.ones(4, 4).tril().bool())


def test_an_empty_answer_is_the_end_alone():
    tree = answer_tree(torch.tensor([[1, -1], [6, 1]]), start=0)
    assert tree.nodes.tolist() == [0, 6]
    assert tree.prefixes.tolist() == [[0, 0], [0, 1]]


def test_equal_answers_share_a_tree_whatever_their_dtype():
    assert answer_tree(ONE, 0) is answer_tree(ONE.int(), 0)
    assert answer_tree(ONE, 0) is not answer_tree(ONE, 1)
    assert answer_tree(torch.tensor([[1, 2, 3, 4]]), 0) is not answer_tree(
        torch.tensor([[1, 2], [3, 4]]), 0
    )


def test_rows_that_are_averaged_have_a_second_beginning():
    trees = [(answer_tree(ONE, 0), 2), (answer_tree(MANY, 0), 1)]
    found = collated(trees, [torch.tensor([7, 7]), None])
    assert found["averaged"].tolist() == [7, 7, -1]
    assert found["nodes"][:, -1].tolist() == [1, 1, 0]  # the end token; padding
    assert not found["depth"][:, -1].any()
    assert not found["node_mask"][:, -1].any()  # statistics and routers read the answers' nodes
    assert found["tree"][:, -1].tolist() == [[False] * 5 + [True]] * 3
    assert not found["tree"][:, :-1, -1].any()
    plain = collated(trees, [None, None])
    assert plain.keys() == found.keys() - {"averaged"}
    assert torch.equal(plain["tree"], found["tree"][:, :-1, :-1])


def test_trees_of_several_tasks_are_padded():
    found = collated([(answer_tree(ONE, 0), 2), (answer_tree(MANY, 0), 1)])
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "nodes": (3, 5), "node_mask": (3, 5), "depth": (3, 5), "tree": (3, 5, 5),
        "answers": (3, 3, 4), "prefixes": (3, 3, 4),
    }  # fmt: skip
    assert found["node_mask"].sum(1).tolist() == [3, 3, 5]
    assert found["nodes"][0].tolist() == [0, 4, 3, 0, 0]
    assert found["answers"][1].tolist() == [[4, 1, -1, -1], [3, 1, -1, -1], [-1] * 4]
    assert torch.equal(found["tree"][0, 3:], torch.eye(5).bool()[3:])  # padding sees itself alone
    assert torch.equal(found["tree"][2], answer_tree(MANY, 0).ancestors)
