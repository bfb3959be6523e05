"""Gate files, gates between pools, and the published gates' layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save, save_file
from torch import Tensor, nn

from actors.artifacts.gate_file import RULES, Manifest, dump, fit, load, read, write
from actors.artifacts.published_gate import import_gate, read_published
from actors.families.clip.architecture import DEFAULTS, PROJECTION, vision_tensors
from actors.families.clip.published_gates import (
    canonical_sources,
    openclip_keys,
    published_layout,
)
from fusion.methods.learned.gate import Gate
from tests.refusals import one_line

D = 5
TASKS = ("cars", "mnist", "dtd")
KEYS = ("a", "b", "c", "d")


def randomised(gate: Gate, seed: int = 0) -> Gate:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in gate.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
    return gate


def make(layer: bool = False, **options: Any) -> tuple[Gate, Manifest]:
    options = {"depth": 2, "scale": 0.3, "softmax": False, "base_weight": False, **options}
    gate = randomised(Gate(D, len(TASKS), len(KEYS) if layer else 1, **options))
    manifest = Manifest(
        method="dawe",
        extractor="microsoft/resnet-18",
        extractor_hash="e1",
        preprocessing="squash-224",
        width=D,
        tasks=TASKS,
        grouping="layer" if layer else "task",
        keys=KEYS if layer else (),
        steps=1000,
        **options,
    )
    return gate, manifest


def features(rows: int = 4, width: int = D) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def refusal(action: Callable[[], object]) -> str:
    with one_line() as lines:
        action()
    return lines[0]


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 1, "scale": 0.5}, {"depth": 0}, {"softmax": True, "base_weight": True}],
)
def test_round_trip(layer: bool, options: dict[str, Any], tmp_path: Path) -> None:
    gate, manifest = make(layer, **options)
    data = dump(gate, manifest)
    assert dump(gate, manifest) == data
    path = tmp_path / "new" / "gate.safetensors"
    write(path, data)
    assert [file.name for file in path.parent.iterdir()] == ["gate.safetensors"]
    for again, said in (load(data, "gate"), read(path, "dawe.gate")):
        assert said == manifest
        assert again.options == gate.options
        assert torch.equal(again(features()), gate(features()))


def test_file_is_plain_safetensors() -> None:
    gate, manifest = make(layer=True)
    data = dump(gate, manifest)
    assert set(load_tensors(data)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    stated = json.loads(header["__metadata__"]["gate"])
    assert stated["format"] == 1
    assert stated["tasks"] == list(TASKS)
    assert stated["keys"] == list(KEYS)
    assert set(stated) - {"sha256"} == set(RULES) == {field.name for field in fields(Manifest)}


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gate.safetensors"
    write(path, b"old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    assert "No space left" in refusal(lambda: write(path, b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_float64_gates_are_saved_as_float32() -> None:
    gate, manifest = make()
    again, _ = load(dump(gate.double(), manifest), "gate")
    assert torch.equal(again(features()), gate.float()(features()))


def test_dump_refuses() -> None:
    gate, manifest = make()
    cases = [
        (replace(manifest, width=6), "width: 6; the gate has 5"),
        (replace(manifest, tasks=("a", "b")), "tasks: 2; the gate has 3"),
        (replace(manifest, grouping="layer", keys=KEYS), "groups: 4; the gate has 1"),
        (replace(manifest, depth=1), "depth: 1; the gate has 2"),
        (replace(manifest, scale=0.5), "scale: 0.5; the gate has 0.3"),
        (replace(manifest, softmax=True), "softmax: True; the gate has False"),
        (replace(manifest, steps=-1), "steps: -1; 0 or a positive whole number needed"),
    ]
    for wrong, message in cases:
        assert refusal(lambda wrong=wrong: dump(gate, wrong)) == f"gate: manifest: {message}"
    with torch.no_grad():
        gate.get_parameter("2.bias")[1] = torch.nan
    assert refusal(lambda: dump(gate, manifest)) == "gate: tensor '2.bias': holds NaN or infinity"


def file_with(
    manifest: Callable[[dict[str, Any]], object] = lambda content: None,
    tensors: Callable[[dict[str, Tensor]], object] = lambda content: None,
    **options: Any,
) -> bytes:
    """A file whose manifest or tensors were changed behind `dump`'s back."""
    gate, stated = make(**options)
    content = json.loads(json.dumps(asdict(stated)))
    state = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    manifest(content)
    tensors(state)
    return bytes(save(state, metadata={"gate": json.dumps(content)}))


@pytest.mark.parametrize("name", list(RULES))
def test_missing_field(name: str) -> None:
    data = file_with(lambda content: content.pop(name))
    assert refusal(lambda: load(data, "g")).startswith(f"g: manifest: {name}: missing; ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 2, "format: 2; 1 can be read"),
        ("format", True, "format: True; 1 can be read"),
        ("method", 3, "method: 3; a text needed"),
        ("extractor", "", "extractor: ''; a text needed"),
        ("extractor_hash", None, "extractor_hash: None; a text needed"),
        ("preprocessing", {}, "preprocessing: {}; a text needed"),
        ("width", 0, "width: 0; a positive whole number needed"),
        ("width", 5.0, "width: 5.0; a positive whole number needed"),
        ("tasks", [], "tasks: []; a list of distinct names needed"),
        ("tasks", ["a", "a"], "tasks: ['a', 'a']; a list of distinct names needed"),
        ("tasks", "abc", "tasks: 'abc'; a list of distinct names needed"),
        ("grouping", "block", "grouping: 'block'; 'task' or 'layer' allowed"),
        ("grouping", "layer", "keys: 0 names; names needed for grouping 'layer', none for 'task'"),
        ("keys", [1], "keys: [1]; a list of distinct names needed"),
        ("keys", ["a"], "keys: 1 names; names needed for grouping 'layer', none for 'task'"),
        ("depth", 3, "depth: 3; 0, 1 or 2 allowed"),
        ("depth", True, "depth: True; 0, 1 or 2 allowed"),
        ("scale", float("nan"), "scale: nan; a finite number needed"),
        ("scale", 10**400, "not JSON: a number of 401 digits; at most 40 allowed"),
        ("softmax", 1, "softmax: 1; true or false needed"),
        ("base_weight", "no", "base_weight: 'no'; true or false needed"),
        ("base_weight", True, "base_weight: true; only with softmax"),
        ("steps", -1, "steps: -1; 0 or a positive whole number needed"),
    ],
)
def test_wrong_field(name: str, value: Any, message: str) -> None:
    data = file_with(lambda content: content.update({name: value}))
    assert refusal(lambda: load(data, "g")) == f"g: manifest: {message}"


def test_unknown_field_and_no_manifest() -> None:
    data = file_with(lambda content: content.update(colour="red"))
    assert refusal(lambda: load(data, "g")).startswith("g: manifest: 'colour': unknown; allowed: ")
    state = {name: tensor.detach() for name, tensor in make()[0].state_dict().items()}
    none = "g: not a gate file: no 'gate' in the safetensors metadata"
    assert refusal(lambda: load(save(state), "g")) == none
    for text, message in (("[1]", "[1]; a JSON object needed"), ("{", "not JSON: ")):
        data = save(state, metadata={"gate": text})
        assert refusal(lambda data=data: load(data, "g")).startswith(f"g: manifest: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.bias"), "'0.bias': missing"),
        (
            lambda t: t.update(x=torch.zeros(1)),
            "'x': unknown; allowed at depth 2: ['0.weight', '0.bias', '2.weight', '2.bias']",
        ),
        (
            lambda t: t.update({"2.weight": torch.zeros(3, 6)}),
            "'2.weight': shape [3, 6]; the manifest says [3, 5]",
        ),
        (
            lambda t: t.update({"2.bias": torch.zeros(3).half()}),
            "'2.bias': dtype torch.float16; torch.float32 needed",
        ),
        (
            lambda t: t["0.weight"].view(-1)[3].fill_(-torch.inf),
            "'0.weight': holds NaN or infinity",
        ),
    ],
)
def test_wrong_tensors(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    data = file_with(tensors=change)
    assert refusal(lambda: load(data, "g")) == f"g: tensor {message}"


def test_a_lying_width_allocates_nothing() -> None:
    data = file_with(lambda content: content.update(width=10**9))
    message = "g: tensor '0.weight': shape [5, 5]; the manifest says [1000000000, 1000000000]"
    assert refusal(lambda: load(data, "g")) == message


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    data, path = dump(*make()), tmp_path / "gate.safetensors"
    for bad in (b"", b"abc", data[:-1], data[: len(data) // 2], b"\xff" * 100):
        message = refusal(lambda bad=bad: load(bad, "g"))
        assert message.startswith("g: truncated or not a safetensors file: ")
    missing = f"dawe.gate: {path}: cannot be read: No such file or directory"
    assert refusal(lambda: read(path, "dawe.gate")) == missing
    write(path, data[:-1])
    start = f"dawe.gate: {path}: truncated or not a safetensors file: "
    assert refusal(lambda: read(path, "dawe.gate")).startswith(start)


def fitted(gate: Gate, manifest: Manifest, **pool: Any) -> Gate:
    usual = {"tasks": TASKS, "groups": KEYS, "extractor_hash": "e1", "width": D}
    return fit(gate, manifest, **{**usual, **pool}, where="g")


def test_task_wise_fits_any_backbone() -> None:
    gate, manifest = make()
    for groups in (KEYS, ("x",), (*KEYS, "z", "y")):
        assert torch.equal(fitted(gate, manifest, groups=groups)(features()), gate(features()))


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 1}, {"depth": 0}, {"softmax": True}, {"softmax": True, "base_weight": True}],
)
def test_layer_wise_by_name(options: dict[str, Any]) -> None:
    gate, manifest = make(layer=True, **options)
    codes = gate(features())
    assert torch.equal(fitted(gate, manifest)(features()), codes)
    for groups in (("d", "c", "b", "a"), ("a", "c"), ("c", "b")):
        new = fitted(gate, manifest, groups=groups)(features())
        assert new.shape == (4, len(TASKS), len(groups))
        for column, name in enumerate(groups):
            torch.testing.assert_close(new[:, :, column], codes[:, :, KEYS.index(name)])


def test_layer_wise_refuses_missing_names() -> None:
    gate, manifest = make(layer=True)
    assert refusal(lambda: fitted(gate, manifest, groups=("a", "y", "z"))) == (
        "g: keys: no 'y', which the pool has; a layer-wise gate needs every tensor of the pool"
        " (it has 4; a task-wise gate fits any backbone)"
    )


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            {"width": 7},
            "width: 5 (features of 'microsoft/resnet-18'); the extractor at hand gives 7",
        ),
        (
            {"extractor_hash": "e2"},
            "extractor_hash: 'e1' (of 'microsoft/resnet-18'); the extractor at hand has 'e2';"
            " a gate reads the features that it was trained on",
        ),
        (
            {"tasks": ("cars", "svhn", "dtd")},
            "tasks: 'mnist': no expert of the pool; the same tasks in the same order needed",
        ),
        (
            {"tasks": (*TASKS, "svhn")},
            "tasks: 'svhn': the pool's, not the gate's; the same tasks in the same order needed",
        ),
        (
            {"tasks": TASKS[:2]},
            "tasks: 'dtd': no expert of the pool; the same tasks in the same order needed",
        ),
        (
            {"tasks": ("cars", "dtd", "mnist")},
            "tasks: the pool's, in another order: number 2 is 'mnist', the pool's is 'dtd';"
            " order the experts as cars, mnist, dtd",
        ),
    ],
)
@pytest.mark.parametrize("layer", [False, True])
def test_other_pools(layer: bool, pool: dict[str, Any], message: str) -> None:
    gate, manifest = make(layer)
    assert refusal(lambda: fitted(gate, manifest, **pool)) == f"g: {message}"


def test_fit_refuses_another_gates_manifest() -> None:
    gate, manifest = make(layer=True)
    wrong = replace(manifest, keys=KEYS[:3])
    message = "g: manifest: groups: 3; the gate has 4"
    assert refusal(lambda: fitted(gate, wrong, groups=("a",))) == message


class Skeleton(nn.Module):
    """Modules and parameters in the order in which open_clip 2.0.2's model.py registers them."""

    def __init__(self, blocks: int, w: int = 4) -> None:
        super().__init__()
        model, visual, transformer = nn.Module(), nn.Module(), nn.Module()
        visual.conv1 = nn.Conv2d(3, w, 2, bias=False)
        visual.class_embedding = nn.Parameter(torch.zeros(w))
        visual.positional_embedding = nn.Parameter(torch.zeros(2, w))
        visual.ln_pre = nn.LayerNorm(w)
        visual.transformer = transformer
        transformer.resblocks = nn.ModuleList(self.block(w) for _ in range(blocks))
        visual.ln_post = nn.LayerNorm(w)
        visual.proj = nn.Parameter(torch.zeros(w, w))
        model.visual = visual
        model.transformer = nn.Linear(w, w)
        model.token_embedding = nn.Embedding(2, w)
        model.positional_embedding = nn.Parameter(torch.zeros(2, w))
        model.ln_final = nn.LayerNorm(w)
        model.text_projection = nn.Parameter(torch.zeros(w, w))
        model.logit_scale = nn.Parameter(torch.ones([]))
        model.register_buffer("attn_mask", torch.zeros(2, 2), persistent=False)
        self.model = model
        del model.transformer  # as the original's ImageEncoder does

    @staticmethod
    def block(w: int) -> nn.Module:
        block = nn.Module()
        block.ln_1 = nn.LayerNorm(w)
        block.attn = nn.MultiheadAttention(w, 1)
        block.ln_attn = nn.Identity()
        block.ln_2 = nn.LayerNorm(w)
        block.mlp = nn.Sequential()
        block.mlp.add_module("c_fc", nn.Linear(w, w))
        block.mlp.add_module("ln", nn.Identity())
        block.mlp.add_module("gelu", nn.GELU())
        block.mlp.add_module("c_proj", nn.Linear(w, w))
        return block


@pytest.mark.parametrize(("blocks", "count"), [(12, 158), (24, 302), (1, 26)])
def test_openclip_keys(blocks: int, count: int) -> None:
    keys = openclip_keys(blocks)
    assert len(keys) == count
    assert keys == tuple(Skeleton(blocks).state_dict())
    assert openclip_keys(12)[5:8] == (
        "model.visual.proj",
        "model.visual.conv1.weight",
        "model.visual.ln_pre.weight",
    )


@pytest.mark.parametrize("blocks", [2, 12, 24])
def test_mapping_covers_every_tensor_once(blocks: int) -> None:
    sources = canonical_sources(blocks)
    tower = vision_tensors({**DEFAULTS, "num_hidden_layers": blocks})
    assert tuple(sources) == (*tower, PROJECTION)
    keys = openclip_keys(blocks)
    used = list(sources.values())
    leftovers = {keys[index] for index in (0, 1, 2, -3, -2, -1)}
    assert {*used} == {*keys} - leftovers
    for key in {*used}:
        assert used.count(key) == (3 if "in_proj" in key else 1)


def test_mapping_keeps_sizes() -> None:
    """By shape, from open_clip's conversion: q, k, v stacked, the projection transposed."""
    ours = {**vision_tensors({**DEFAULTS, "num_hidden_layers": 2}), PROJECTION: (512, 768)}
    w = 768
    block = {"ln_1": w, "ln_2": w, "c_fc": 4 * w, "c_proj": w, "in_proj": 3 * w, "out_proj": w}
    for name, key in canonical_sources(2).items():
        rows = next((size for part, size in block.items() if part in key), None)
        if rows is not None:
            assert ours[name][0] * (3 if "in_proj" in key else 1) == rows
            assert len(ours[name]) == (2 if key.endswith("weight") and "ln_" not in key else 1)
            assert name.split(".")[2] == key.split(".")[4]
    pairs = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "pre_layrnorm.bias": "ln_pre.bias",
        "post_layernorm.weight": "ln_post.weight",
        "visual_projection.weight": "proj",
        "encoder.layers.1.layer_norm1.weight": "transformer.resblocks.1.ln_1.weight",
        "encoder.layers.1.layer_norm2.bias": "transformer.resblocks.1.ln_2.bias",
        "encoder.layers.0.mlp.fc1.bias": "transformer.resblocks.0.mlp.c_fc.bias",
    }
    for name, key in pairs.items():
        assert canonical_sources(2)[name] == f"model.visual.{key}"


def published(outputs: int, width: int = D) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(7)
    sizes = {"0.weight": (width, width), "0.bias": (width,)}
    sizes |= {"2.weight": (outputs, width), "2.bias": (outputs,)}
    return {name: torch.randn(size, generator=draw) for name, size in sizes.items()}


def imported(tensors: dict[str, Tensor], blocks: int = 2, **more: Any) -> tuple[Gate, Manifest]:
    about = {"extractor": "microsoft/resnet-50", "extractor_hash": "e1", "preprocessing": "p"}
    layout = published_layout(blocks)
    return import_gate(tensors, **{"tasks": TASKS, "layout": layout, **about, **more}, where="p")


def as_published(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the original's `dict_mapping` computes: [B, M]."""
    hidden = nn.functional.relu(nn.functional.linear(x, tensors["0.weight"], tensors["0.bias"]))
    return nn.functional.linear(hidden, tensors["2.weight"], tensors["2.bias"])


def test_import_task_wise() -> None:
    tensors = published(len(TASKS))
    gate, manifest = imported(tensors, steps=500)
    assert (manifest.grouping, manifest.keys, manifest.steps) == ("task", (), 500)
    assert (manifest.method, manifest.width, manifest.tasks) == ("dawe", D, TASKS)
    torch.testing.assert_close(gate(features())[:, :, 0], as_published(tensors, features()))
    assert load(dump(gate, manifest), "g")[1] == manifest


@pytest.mark.parametrize("blocks", [2, 12])
def test_import_layer_wise(blocks: int) -> None:
    keys = openclip_keys(blocks)
    tensors = published(len(TASKS) * len(keys))
    gate, manifest = imported(tensors, blocks)
    gate, again = load(dump(gate, manifest), "g")
    assert again == manifest
    assert manifest.keys == (
        *vision_tensors({**DEFAULTS, "num_hidden_layers": blocks}),
        PROJECTION,
    )
    codes = gate(features())
    flat = as_published(tensors, features())
    for column, name in enumerate(manifest.keys):
        index = keys.index(canonical_sources(blocks)[name])
        for task in range(len(TASKS)):
            expected = flat[:, task * len(keys) + index]
            torch.testing.assert_close(codes[:, task, column], expected)


def test_imported_gate_fits_a_tower_without_projection() -> None:
    gate, manifest = imported(published(len(TASKS) * 38))
    tower = manifest.keys[:-1]
    new = fit(gate, manifest, tasks=TASKS, groups=tower, extractor_hash="e1", width=D, where="g")
    torch.testing.assert_close(new(features()), gate(features())[:, :, :-1])
    larger = tuple(vision_tensors({**DEFAULTS, "num_hidden_layers": 3}))
    message = refusal(
        lambda: fit(
            gate, manifest, tasks=TASKS, groups=larger, extractor_hash="e1", width=D, where="g"
        )
    )
    assert message.startswith("g: keys: no 'encoder.layers.2.self_attn.k_proj.weight', ")


SIZES = "; a layer-wise gate fits models of one size, a task-wise one of any"


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        (
            published(9),
            {},
            "tensor '2.weight': 9 outputs; 3 tasks need 3 (task-wise) or 114 (layer-wise: 38 keys"
            " of 2 blocks)" + SIZES,
        ),
        (
            published(114),
            {"blocks": 12},
            "tensor '2.weight': 114 outputs; 3 tasks need 3 (task-wise) or 474 (layer-wise: 158"
            " keys of 12 blocks)" + SIZES,
        ),
        (
            published(114),
            {"tasks": TASKS[:2]},
            "tensor '2.weight': 114 outputs; 2 tasks need 2 (task-wise) or 76 (layer-wise: 38 keys"
            " of 2 blocks)" + SIZES,
        ),
        (
            {**published(3), "0.weight": torch.zeros(4, 4)},
            {},
            "tensor '0.weight': shape [4, 4]; [5, 5] goes with '2.weight' [3, 5]",
        ),
        (
            {**published(3), "2.bias": torch.zeros(4)},
            {},
            "tensor '2.bias': shape [4]; [3] goes with '2.weight' [3, 5]",
        ),
        (
            {**published(3), "2.weight": torch.zeros(3)},
            {},
            "tensor '2.weight': shape [3]; [M, d] needed",
        ),
        (
            {"0.weight": torch.zeros(3, 5)},
            {},
            "tensors ['0.weight']; ['0.weight', '0.bias', '2.weight', '2.bias'] needed",
        ),
        (
            {**published(3), "2.bias": torch.tensor([0.3, torch.nan, 0.3])},
            {},
            "tensor '2.bias': holds NaN or infinity",
        ),
    ],
)
def test_import_refuses(tensors: dict[str, Tensor], options: dict[str, Any], message: str) -> None:
    assert refusal(lambda: imported(tensors, **options)) == f"p: {message}"


def test_read_published(tmp_path: Path) -> None:
    tensors = published(3)
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        found = read_published(tmp_path / name)
        assert {*found} == {*tensors}
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("new", [True, False])
def test_pickled_modules_are_refused_and_not_run(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "dict_mapping_step=1000.pt"
    module = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    torch.save(module, path, _use_new_zipfile_serialization=new)
    message = refusal(lambda: read_published(path))
    assert message.startswith(f"{path}: a pickled module or other object, which can run code")
    command = message.split('python -c "')[1].removesuffix('"')
    command = command.replace("'gate.safetensors'", repr(str(tmp_path / "gate.safetensors")))
    exec(command, {})  # the way to convert, as the message has it
    gate, _ = imported(read_published(tmp_path / "gate.safetensors"))
    torch.testing.assert_close(gate(features())[:, :, 0], module(features()))


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Trap()}, tmp_path / "a.pt")
    assert "other object, which can run code" in refusal(lambda: read_published(tmp_path / "a.pt"))
    assert not Path("trapped").exists()


def test_read_published_refuses_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert refusal(lambda: read_published(path)) == (
        f"{path}: cannot be read: No such file or directory"
    )
    for content, kind in ((torch.zeros(2), "Tensor"), ({"a": 1}, "dict"), ([], "list")):
        torch.save(content, path)
        needed = f"{path}: holds a {kind}; a state dict (name -> tensor) needed"
        assert refusal(lambda: read_published(path)) == needed
    file = io.BytesIO()
    torch.save(published(3), file)
    for bad in (b"", b"hello\n", file.getvalue()[:-50], b"PK\x03\x04" + b"\0" * 50):
        path.write_bytes(bad)
        damaged = f"{path}: damaged, or not a file of torch.save"
        assert refusal(lambda: read_published(path)) == damaged
    broken = tmp_path / "a.safetensors"
    broken.write_bytes(b"abc")
    start = f"{broken}: truncated or not a safetensors file: "
    assert refusal(lambda: read_published(broken)).startswith(start)
