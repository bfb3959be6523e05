"""The shipped configurations of the published Flan-T5 models: valid, and planned at true sizes.

Weights are files of holes: headers state the real shapes, and a plan reads no weight.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from actors.cluster.planner import Node, Resources
from actors.data.text.glue import TASKS
from fusion.errors import InputError
from sweeps.cli import plan
from sweeps.cluster import ray_connection
from sweeps.spec.sweep import SweepSpec, load, validate
from tests.sweeps.planning.holes import write_holes
from tests.tiny_text import write_texts, write_tokenizer

CONFIGS = Path("sweeps/configs/text")
SIZES = {
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
}
WORDS = (
    "unacceptable", "acceptable", "entailment", "neutral", "contradiction", "no", "yes", "negative",
    "positive", "a", "text", ".", *"0123456789",
)  # fmt: skip
ENCODER = "sentence-transformers/msmarco-MiniLM-L12-cos-v5"


def hollow_t5(folder: Path, size: str) -> dict[str, tuple[int, ...]]:
    """A Flan-T5 in the hub's layout; its shapes by name."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
        tie_word_embeddings=False, **SIZES[size],
    )  # fmt: skip
    with torch.device("meta"):
        found = T5ForConditionalGeneration(config).state_dict()
    aliases = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    shapes = {name: tuple(t.shape) for name, t in found.items() if name not in aliases}
    shapes["lm_head.weight"] = shapes["shared.weight"]
    write_holes(folder / "model.safetensors", shapes)
    config.save_pretrained(folder)
    write_tokenizer(folder, WORDS, limit=512)
    return shapes


def hollow_adapter(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """LoRA of rank 16 on every q and v, as PEFT writes it."""
    factors = {}
    for name, (rows, columns) in ((n, s) for n, s in shapes.items() if len(s) == 2):
        if re.search(r"Attention\.[qv]\.weight$", name):
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            factors |= {f"{stem}A.weight": (16, columns), f"{stem}B.weight": (rows, 16)}
    write_holes(folder / "adapter_model.safetensors", factors)
    about = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "lora_dropout": 0.1,
             "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def hollow_encoder(folder: Path) -> Path:
    """A MiniLM of 12 layers and width 384 in the layout of `sentence-transformers`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    config = BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device("meta"):
        found = BertModel(config).state_dict()
    write_holes(folder / "model.safetensors", {name: t.shape for name, t in found.items()})
    config.save_pretrained(folder)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def glue_folder(folder: Path, task: str) -> Path:
    """Rows of a GLUE task in the hub's layout, with its columns and its class names."""
    known = TASKS[task]
    validation = "validation_matched" if task == "mnli" else "validation"
    splits = {}
    for name, rows in (("train", 64), (validation, 16)):
        columns = {column: ["a text ."] * rows for column in known.columns}
        labels = [row % len(known.targets) for row in range(rows)]
        splits[name] = columns | {"label": [row % 6 / 1 for row in labels]} if known.numbers else (
            columns | {"label": labels}
        )  # fmt: skip
    return write_texts(folder, splits, None if known.numbers else list(known.targets))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("glue")
    encoder = hollow_encoder(root / "encoder")
    return encoder, {task: str(glue_folder(root / task, task)) for task in TASKS}


@pytest.fixture(scope="module", params=sorted(SIZES))
def models(request, tmp_path_factory):
    """Base and adapter of one size."""
    root = tmp_path_factory.mktemp(request.param)
    shapes = hollow_t5(root / "base", request.param)
    return request.param, root / "base", hollow_adapter(root / "adapter", shapes)


def local(file: Path, data, base: Path, expert: Path) -> SweepSpec:
    """A shipped file with local folders for hub ids."""
    encoder, folders = data
    spec = load(file).model_dump(mode="json")
    assert all(
        source.startswith("tanganke/flan-t5-") for source in spec["pool"]["experts"].values()
    )
    spec["pool"] = {
        "base": str(base),
        "experts": dict.fromkeys(spec["pool"]["experts"], str(expert)),
    }
    for task, entry in spec["tasks"].items():
        assert entry["dataset"] == f"nyu-mll/glue:{task}"
        entry["dataset"] = folders[task]
    text = json.dumps(spec).replace(ENCODER, str(encoder)).replace("fields:base", f"fields:{base}")
    return validate(json.loads(text), "spec.yaml")


def shown(spec: SweepSpec, gpus: int, gigabytes: int, tmp_path: Path, monkeypatch) -> str:
    resources = Resources((Node(16, gpus, 256 * 10**9, gigabytes * 10**9),))
    monkeypatch.setattr(ray_connection, "this_machine", lambda: resources)
    console = Console(width=200, record=True)
    plan.show(spec, tmp_path, console)
    return console.export_text()


def planned(file: str, data, models, machine: tuple[int, int], tmp_path, monkeypatch) -> str:
    """The plan of a shipped file for a machine of (GPUs, gigabytes each)."""
    _, base, adapter = models
    expert = adapter if "lora" in file else base
    return shown(local(CONFIGS / file, data, base, expert), *machine, tmp_path, monkeypatch)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_files_name_published_models_and_gates_at_both_rates(file):
    spec = load(file)
    size, full = "large" if "large" in file.name else "base", "lora" not in file.name
    assert spec.name == file.stem.replace("_", "-")
    assert spec.pool.base == f"google/flan-t5-{size}"
    assert list(spec.pool.experts) == list(spec.tasks) == sorted(TASKS)
    for task, source in spec.pool.experts.items():
        assert source == f"tanganke/flan-t5-{size}_glue-{task}" + ("" if full else "_lora-16")
        assert spec.tasks[task].dataset == f"nyu-mll/glue:{task}"
    assert (spec.metric, spec.splits.report) == ("score/mean", "validation")
    gate = spec.methods["dawe"].params
    assert (gate["steps"], gate["batch_size"]) == (1000, 8)
    rates = ("per_norm", 5e-3, "fit") if "per_norm" in file.name else ("plain", 5e-6, "report")
    assert (gate["rate"], gate["learning_rate"], gate["adapt_on"]) == rates


@pytest.mark.parametrize("models", ["base"], indirect=True)
def test_full_experts_of_base_on_one_gpu(data, models, tmp_path, monkeypatch):
    said = planned("flan_t5_base.yaml", data, models, (1, 80), tmp_path, monkeypatch)
    assert "282 tensors, 247,577,856 parameters each (float32 on disk)" in said
    assert "1 whole replica(s) on GPU" in said
    assert "10.56 GB base and task vectors once" in said  # 9 × 0.99 GB, times the store's margin
    assert "8 tasks, 128 texts at up to 512 tokens" in said
    assert "stsb: judged by spearman" in said
    assert "mnli: train 64, validation_matched 16 texts" in said
    assert "adapts to report: the texts it is reported on, without labels" in said


@pytest.mark.slow
@pytest.mark.parametrize("models", ["base"], indirect=True)
def test_gates_at_our_rate_read_the_base_too(data, models, tmp_path, monkeypatch):
    file = "flan_t5_base_lora_per_norm.yaml"
    said = planned(file, data, models, (1, 16), tmp_path, monkeypatch)
    assert "task vectors stay factors" in said
    assert said.count("extractor ") == 3
    assert "base: 768 features" in said
    assert "encoder: 384 features" in said
    assert "adapts to fit" in said


@pytest.mark.parametrize("models", ["large"], indirect=True)
@pytest.mark.parametrize(("machine", "placed"), [((1, 24), "1 whole"), ((5, 10), "shards")])
def test_adapters_of_large_whole_and_in_shards(
    machine, placed, data, models, tmp_path, monkeypatch
):
    said = planned("flan_t5_large_lora.yaml", data, models, machine, tmp_path, monkeypatch)
    assert "558 tensors, 783,150,080 parameters each" in said
    assert placed in said
    assert "4.09 GB base and factors once" in said  # 3.13 GB of base, 0.15 GB of factors


@pytest.mark.parametrize("models", ["large"], indirect=True)
def test_a_refusal_suggests_a_dtype_that_holds_activations(data, models, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"needs 15\.31 GB on a GPU of 10\.00 GB.* would do"
    ) as refused:
        planned("flan_t5_large_lora.yaml", data, models, (4, 10), tmp_path, monkeypatch)
    assert "bfloat16" in str(refused.value)
    assert " float16" not in str(refused.value)
