"""Sentence encoders: the mean over real tokens, layouts of folders, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.data.task import Task, TaskSource, open_task
from actors.gate_features.extractor import Extractor, open_extractor
from actors.gate_features.feature_cache import open_features, prepare_features
from fusion.errors import InputError
from tests.actors.conftest import Tiny
from tests.refusals import one_line
from tests.tiny_bert import Models, write_texts

KIND = "sentence_transformers.models."


def layout(folder: Path, kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")) -> Path:
    """Write what `sentence-transformers` writes beside a plain encoder."""
    listed = []
    for at, kind in enumerate(kinds):
        path = "" if kind == "Transformer" else f"{at}_{kind}"
        listed.append({"idx": at, "name": str(at), "path": path, "type": KIND + kind})
        (folder / path).mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    pooling["pooling_mode_cls_token"] = False
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 6, "do_lower_case": False})
    )
    return folder


def opened(folder: Path | str) -> Extractor:
    return open_extractor(str(folder), "methods.dawe.extractor")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    folder = write_texts(tmp_path / "data", ("good", "bad"), 1)
    source = TaskSource("t", str(folder), text=["text"], template="it says: {text}")
    return open_task(source, "text")


def features(extractor: Extractor, task: Task, root: Path) -> torch.Tensor:
    found = prepare_features(extractor, {"t": task}, [("t", "test")], root)
    return open_features(found["t", "test"])


def reference(folder: Path, texts: list[str], limit: int) -> torch.Tensor:
    """Mean of the library's last states, a text at a time."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            rows.append(model(input_ids=ids).last_hidden_state[0].mean(0))
    return torch.stack(rows)


def texts_of(task: Task) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_table(Path(task.dataset) / "test.parquet").column("text").to_pylist())


def test_means_are_those_of_the_library_normalised_and_cut(
    models: Models, task: Task, tmp_path: Path
) -> None:
    folder = layout(models.write(tmp_path / "e", encoder=True))
    extractor = opened(folder)
    assert (extractor.kind, extractor.width, extractor.inputs.row.ragged["ids"][1]) == (
        "sentence", 16, 6,
    )  # fmt: skip
    wanted = reference(folder, [f"it says: {text}" for text in texts_of(task)], 6)
    wanted = torch.nn.functional.normalize(wanted, dim=1)
    torch.testing.assert_close(features(extractor, task, tmp_path), wanted, rtol=1e-4, atol=1e-5)


def test_a_plain_encoder_and_a_classifier_are_averaged(
    models: Models, task: Task, tmp_path: Path
) -> None:
    folder = models.write(tmp_path / "e")
    extractor = opened(folder)
    assert extractor.kind == "bert"
    wanted = reference(folder, [f"it says: {text}" for text in texts_of(task)], 20)
    torch.testing.assert_close(features(extractor, task, tmp_path), wanted, rtol=1e-4, atol=1e-5)


def test_raw_fields_leave_the_prompt_out(bert: Models, task: Task, tmp_path: Path) -> None:
    folder = layout(bert.write(tmp_path / "e", encoder=True), ("Transformer", "Pooling"))
    extractor = opened(f"fields:{folder}")
    assert extractor.fingerprint != opened(folder).fingerprint
    wanted = reference(folder, texts_of(task), 6)
    torch.testing.assert_close(features(extractor, task, tmp_path), wanted, rtol=1e-4, atol=1e-5)


def pooled(folder: Path, **modes: Any) -> Path:
    file = folder / "1_Pooling/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **modes}))
    return folder


def limited(folder: Path, **given: Any) -> Path:
    (folder / "sentence_bert_config.json").write_text(json.dumps(given))
    return folder


def listed(folder: Path, content: Any) -> Path:
    (folder / "modules.json").write_text(json.dumps(content))
    return folder


def typed(folder: Path, kind: str) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": kind}))
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "dense": (
        lambda f: layout(f, ("Transformer", "Pooling", "Dense")),
        "module 'Dense'; Transformer, Pooling, Normalize of sentence_transformers allowed",
    ),
    "foreign": (
        lambda f: listed(f, [{"type": "my.code.Transformer", "path": ""}]),
        "module 'my.code.Transformer'; Transformer, Pooling, Normalize of",
    ),
    "order": (
        lambda f: layout(f, ("Transformer", "Normalize", "Pooling")),
        "modules Transformer, Normalize, Pooling; Transformer, Pooling and, last, Normalize needed",
    ),
    "not a list": (lambda f: listed(f, {}), "modules.json: {}; a list of modules needed"),
    "no type": (lambda f: listed(f, [{"idx": 0}]), "a module with a type needed"),
    "outside": (
        lambda f: listed(f, [{"type": KIND + "Transformer", "path": "../.."}]),
        "modules.json: path",
    ),
    "class token": (
        lambda f: pooled(f, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
        "pooling_mode_cls_token; pooling_mode_mean_tokens alone allowed",
    ),
    "limit": (lambda f: limited(f, max_seq_length=0), "max_seq_length: 0; a whole number of at"),
    "lower": (lambda f: limited(f, do_lower_case=True), "do_lower_case: true; false allowed"),
    "type": (lambda f: typed(f, "gpt2"), "model_type 'gpt2'; allowed: bert, roberta"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_other_layouts_are_refused_by_name(fault: str, bert: Models, tmp_path: Path) -> None:
    damage, message = REFUSED[fault]
    folder = damage(layout(bert.write(tmp_path / "e", encoder=True)))
    with one_line(message, start="methods.dawe.extractor: "):
        opened(folder)


def test_missing_weights_are_found_where_they_are_loaded(bert: Models, tmp_path: Path) -> None:
    folder = layout(bert.write(tmp_path / "e", encoder=True))
    state = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    save_file({key: v for key, v in state.items() if key != gone}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"tensor '{gone}': missing"):
        opened(folder).load("cpu")


def test_every_file_that_is_read_is_in_the_fingerprint(bert: Models, tmp_path: Path) -> None:
    folder = layout(bert.write(tmp_path / "e", encoder=True))
    seen = {opened(folder).fingerprint}
    listing = json.loads((folder / "modules.json").read_text())
    listed(folder, listing[:2])
    seen.add(opened(folder).fingerprint)
    pooled(folder, extra=1)
    seen.add(opened(folder).fingerprint)
    limited(folder, max_seq_length=6)
    seen.add(opened(folder).fingerprint)
    assert len(seen) == 4


def test_images_have_no_fields(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "clip")
    with one_line("of texts only", start="methods.dawe.extractor: "):
        opened(f"fields:{folder}")
