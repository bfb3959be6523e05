"""Checkpoints of BERT and RoBERTa by their headers: names of several versions, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.bert.architecture import OUT, canonical
from actors.families.registry import family_in, inspect
from actors.pool.pool import open_pool
from tests.actors.conftest import Tiny
from tests.refusals import one_line
from tests.tiny_bert import Models


def changed(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Tensors added to a model's file, or taken out of it."""
    file = folder / "model.safetensors"
    state = {**load_file(file), **{key.replace("__", "."): v for key, v in tensors.items()}}
    save_file({key: v for key, v in state.items() if v is not None}, file)
    return folder


def configured(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def opened(folder: Path) -> Checkpoint:
    return inspect(str(folder), "pool.base")


def test_every_tensor_of_a_classifier_is_found_in_the_order_of_the_library(
    models: Models, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = models.write(tmp_path / "m", classes=3, id2label={0: "a", 1: "b", 2: "c"})
    found = opened(folder)
    library = AutoModelForSequenceClassification.from_pretrained(folder)
    wanted = {canonical(key): tuple(v.shape) for key, v in library.named_parameters()}
    assert {key: info.shape for key, info in found.tensors.items()} == wanted
    assert list(found.tensors) == list(wanted)
    assert found.fields["labels"] == ("a", "b", "c")
    assert family_in(found).name == "bert"


def test_an_encoder_alone_has_no_classes(models: Models, tmp_path: Path) -> None:
    found = opened(models.write(tmp_path / "m", encoder=True))
    assert found.fields["labels"] == ()
    assert ("pooler.dense.weight" in found.tensors) == (models.kind == "bert")
    assert not [key for key in found.tensors if key.startswith("classifier")]


def test_names_of_early_versions_buffers_and_heads_of_pretraining(
    bert: Models, tmp_path: Path
) -> None:
    folder = bert.write(tmp_path / "m", encoder=True)
    wanted = list(opened(folder).tensors)
    state = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for key, value in state.items():
        ends = [end for end in old if key.endswith(end)]
        renamed["bert." + (key.removesuffix(ends[0]) + old[ends[0]] if ends else key)] = value
    renamed["bert.embeddings.position_ids"] = torch.arange(20)[None]
    renamed["cls.predictions.bias"] = torch.zeros(bert.vocabulary)
    save_file(renamed, folder / "model.safetensors")
    assert list(opened(folder).tensors) == wanted


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda f: changed(f, bert__pooler__dense__bias=None),
        "model.safetensors: tensor 'pooler.dense.bias': missing",
    ),
    "unknown": (
        lambda f: changed(f, qa_outputs__weight=torch.zeros(2, 16)),
        "tensor 'qa_outputs.weight': not part of the model",
    ),
    "twice": (
        lambda f: changed(f, pooler__dense__bias=torch.zeros(16)),
        "tensor 'pooler.dense.bias': there twice",
    ),
    "shape": (
        lambda f: configured(f, intermediate_size=25),
        "tensor 'encoder.layer.0.intermediate.dense.weight': shape [24, 16];… says [25, 16]",
    ),
    "integers": (
        lambda f: changed(f, classifier__bias=torch.zeros(3, dtype=torch.int64)),
        "tensor 'classifier.bias': dtype torch.int64; floating point needed",
    ),
    "tokens": (
        lambda f: configured(f, architectures=["BertForTokenClassification"]),
        "architectures: …BertForTokenClassification…; a classifier of sequences",
    ),
    "relative": (
        lambda f: configured(f, position_embedding_type="relative_key"),
        "position_embedding_type: 'relative_key'; 'absolute' allowed",
    ),
    "decoder": (lambda f: configured(f, is_decoder=True), "is_decoder: True; False allowed"),
    "heads": (
        lambda f: configured(f, num_attention_heads=3),
        "hidden_size: 16; a multiple of the 3 heads needed",
    ),
    "layers": (
        lambda f: configured(f, num_hidden_layers="2"),
        "num_hidden_layers: '2'; 1 to 256, whole, needed",
    ),
    "padding": (
        lambda f: configured(f, pad_token_id=-1),
        "pad_token_id: -1; 0 to 16, whole, needed",
    ),
    "epsilon": (lambda f: configured(f, layer_norm_eps="x"), "layer_norm_eps: 'x'; a number from"),
    "labels": (
        lambda f: configured(f, id2label={"0": "a", "2": "b"}),
        "id2label: …; the classifier has 3 classes: keys 0 to 2 needed",
    ),
    "names": (
        lambda f: configured(f, id2label={"0": "a", "1": "a", "2": "b"}),
        "id2label: 'a': the name of two classes",
    ),
    "count": (
        lambda f: configured(f, num_labels=5),
        "num_labels: 5; id2label has 3 classes",
    ),
    "back": (
        lambda f: configured(
            f, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 1, "b": 0, "c": 2}
        ),
        "label2id: 'a' is 1; 0 in id2label",
    ),
    "several": (
        lambda f: configured(f, problem_type="multi_label_classification"),
        "problem_type: 'multi_label_classification'; single_label_classification (or none)",
    ),
    "activation": (lambda f: configured(f, hidden_act=3), "hidden_act: 3; the name of an activ"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_damaged_models_are_refused_by_name(fault: str, bert: Models, tmp_path: Path) -> None:
    damage, message = REFUSED[fault]
    folder = damage(bert.write(tmp_path / "m"))
    with one_line(*message.split("…"), start="pool.base: "):
        opened(folder)


def test_an_unknown_activation_is_refused_where_the_model_is_built(
    bert: Models, tmp_path: Path
) -> None:
    found = opened(configured(bert.write(tmp_path / "m"), hidden_act="gelo"))
    with one_line("hidden_act: 'gelo'; allowed: ", "gelu"):
        family_in(found).segments(found)


MEMBERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "vocabulary": ({}, {"vocab_size": 18}, "vocab_size: 18; the base has 17"),
    "width": ({}, {"hidden_size": 24}, "hidden_size: 24; the base has 16"),
    "count": ({}, {"classes": 2}, "id2label: 2 classes; the base has 3: the classifier is fused"),
    "none": ({}, {"encoder": True}, "id2label: 0 classes; the base has 3"),
    "order": (
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {0: "b", 1: "a", 2: "c"}},
        "id2label: class 0 is 'b', in the base 'a': another order of the same classes",
    ),
    "names": (
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {0: "a", 1: "x", 2: "c"}},
        "id2label: class 1 is 'x', in the base 'b': other classes",
    ),
}


@pytest.mark.parametrize("fault", MEMBERS)
def test_members_that_differ_are_refused_by_name(fault: str, bert: Models, tmp_path: Path) -> None:
    ours, theirs, message = MEMBERS[fault]
    base, expert = bert.write(tmp_path / "b", **ours), bert.write(tmp_path / "e", 1, **theirs)
    with one_line(message, start="pool.experts.run_0: "):
        open_pool(str(base), {"run_0": str(expert)})


def test_a_pool_that_mixes_families_is_refused(bert: Models, tiny: Tiny, tmp_path: Path) -> None:
    text, image = str(bert.write(tmp_path / "b")), str(tiny.base(tmp_path / "c"))
    for base, other, kinds in (
        (text, image, "a clip model; the base is bert"),
        (image, text, "a bert model; the base is clip"),
    ):
        with one_line(start=f"pool.experts.run_0: {other}: ", end=kinds):
            open_pool(base, {"run_0": other})


def test_a_base_without_a_classifier_takes_experts_of_any_classes(
    models: Models, tmp_path: Path
) -> None:
    base = models.write(tmp_path / "b", encoder=True)
    experts = {f"e{c}": str(models.write(tmp_path / f"e{c}", c, classes=c)) for c in (2, 4)}
    pool = open_pool(str(base), experts)
    assert not [name for name in pool.names if name.startswith(OUT[models.kind])]
    assert pool.family.own_heads(pool.base, pool.experts) == experts
    with_head = {"whole": str(models.write(tmp_path / "w", 5))}
    assert pool.family.own_heads(opened(Path(with_head["whole"])), {}) == {}


def test_ingredients_of_a_base_without_names_have_one_order_among_them(
    bert: Models, tmp_path: Path
) -> None:
    base = bert.write(tmp_path / "b")
    orders = ({0: "a", 1: "b", 2: "c"}, {0: "c", 1: "b", 2: "a"})
    runs = {f"r{i}": str(bert.write(tmp_path / f"r{i}", i + 1, id2label=orders[i])) for i in (0, 1)}
    pool = open_pool(str(base), runs)
    with one_line("class 0 is 'c', of pool.experts.r0 'a': another order", start="pool.experts.r1"):
        pool.family.own_heads(pool.base, pool.experts)


def test_a_tokenizer_that_differs_names_the_first_token(bert: Models, tmp_path: Path) -> None:
    from tests.tiny_bert import WORDS, write_tokenizer

    base, expert = bert.write(tmp_path / "b"), bert.write(tmp_path / "e", 1)
    family = family_in(opened(base))
    assert family.difference(base, expert) is None
    write_tokenizer(expert, "bert", (WORDS[0], "odd", *WORDS[2:]))
    found = family.difference(base, expert)
    assert found is not None
    assert "token 6 is 'odd', in the base 'bad'; 17 tokens, the base has 17" in found
