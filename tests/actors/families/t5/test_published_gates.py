"""Published gates of Flan-T5, at the true sizes of the models that they are for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from actors.artifacts.gate_file import fit
from actors.artifacts.published_gate import INITIAL
from actors.families.registry import published_gate
from actors.families.t5.architecture import t5_fields, t5_tensors
from fusion.errors import InputError

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
WIDTH = 384
SIZES = {
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
}
ADAPTED = {"base": 72, "large": 144}
"""Weights of q and v."""


def groups(size):
    config = {**SIZES[size], "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return tuple(t5_tensors(t5_fields(config, False, "config.json")))


def written(folder, outputs):
    """A gate as the original's `nn.Sequential` keeps it, its last layer drawn."""
    torch.manual_seed(outputs)
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
    save_file(layers.state_dict(), folder / "gate.safetensors")
    return layers, folder / "gate.safetensors"


def imported(path, size):
    about = {"extractor": "msmarco", "extractor_hash": "e", "preprocessing": "p"}
    return published_gate(path, tasks=TASKS, groups=groups(size), where="gate: g", **about)


def fitted(found, size):
    return fit(*found, tasks=TASKS, groups=groups(size), extractor_hash="e", width=WIDTH, where="g")


@pytest.mark.parametrize("size", SIZES)
def test_layer_wise_outputs_are_those_of_q_and_v_in_order(size, tmp_path):
    names, adapted = groups(size), ADAPTED[size]
    assert len(names) == {"base": 282, "large": 558}[size]
    layers, path = written(tmp_path, len(TASKS) * adapted)
    gate, manifest = imported(path, size)
    assert (manifest.grouping, manifest.keys) == ("layer", names)
    features = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codings = fitted((gate, manifest), size)(features)
        wanted = layers(features).view(3, len(TASKS), adapted)
    columns = [at for at, name in enumerate(names) if name.endswith((".q.weight", ".v.weight"))]
    torch.testing.assert_close(codings[:, :, columns], wanted)
    others = [at for at in range(len(names)) if at not in columns]
    assert torch.equal(codings[:, :, others], torch.full((3, len(TASKS), len(others)), INITIAL))


def test_the_order_is_that_of_the_state_dict():
    first = [name for name in groups("base") if name.endswith((".q.weight", ".v.weight"))]
    block = "decoder.block.0.layer"
    at = first.index(f"{block}.0.SelfAttention.q.weight")
    assert at == 2 * SIZES["base"]["num_layers"]
    kinds = [f"{place}.{part}.weight" for place in ("0.SelfAttention", "1.EncDecAttention")
             for part in "qv"]  # fmt: skip
    assert first[at : at + 4] == [f"{block}.{kind}" for kind in kinds]


def test_a_task_wise_gate_moves_between_sizes(tmp_path):
    layers, path = written(tmp_path, len(TASKS))
    found = imported(path, "base")
    assert (found[1].grouping, found[1].keys) == ("task", ())
    features = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fitted(found, "large")(features)[:, :, 0], layers(features))


def test_a_layer_wise_gate_is_refused_by_another_size(tmp_path):
    _, path = written(tmp_path, len(TASKS) * ADAPTED["base"])
    message = (
        r"^gate: g: tensor '2\.weight': 576 outputs; 8 tasks need 8 \(task-wise\) or 1152"
        r" \(layer-wise: 144 keys, of every q and v\); a layer-wise gate fits models of one size,"
        r" a task-wise one of any$"
    )
    with pytest.raises(InputError, match=message):
        imported(path, "large")
    with pytest.raises(InputError, match=r"g: keys: no 'encoder\.block\.12\..* a layer-wise gate"):
        fitted(imported(path, "base"), "large")
