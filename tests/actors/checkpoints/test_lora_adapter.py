"""LoRA and L-LoRA experts: what PEFT merges, first-order expansions, and files that will not do."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call, jvp

from actors.checkpoints.checkpoint import content_hash
from actors.checkpoints.lora_adapter import is_adapter, read_factors
from actors.checkpoints.sources import complete
from actors.families.clip.architecture import PREFIX, PROJECTION
from actors.families.registry import inspect
from actors.pool.pool import load_flat, open_pool, task_vectors
from actors.pool.streaming_merge import streamed
from actors.pool.vectors_on_disk import filed_vectors
from fusion.errors import InputError, Vanished
from fusion.registry import METHODS
from fusion.task_vectors.coding import mix
from tests.fusion.laws import assert_same_bits

Q, V = (f"encoder.layers.0.self_attn.{part}.weight" for part in ("q_proj", "v_proj"))

WEIGHTS = "adapter_model.safetensors"

LINEARIZED = "linearized_adapter_model.safetensors"

QV = ["q_proj", "v_proj"]

TOWER = r".*vision_model.*\.(q_proj|v_proj)"


def lora(base: Path, *, full: bool = False, seed: int = 0, dtype=torch.float32, **options):
    """A model of the base with an adapter by PEFT, all that it trains moved at random."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPModel, CLIPVisionModel

    kind = CLIPModel if full else CLIPVisionModel
    inner = kind.from_pretrained(base, dtype=dtype)
    model = get_peft_model(inner, LoraConfig(**{"r": 4, "target_modules": QV, **options}))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "original_module" not in name:
            step = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            parameter.data += step.to(parameter.dtype)
    return model


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("origin") / "base")


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory) -> Path:
    """An adapter as PEFT writes it: r = 4, α = 8, q and v."""
    folder = tmp_path_factory.mktemp("plain") / "lora"
    lora(base).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(plain, tmp_path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "copy"))


def rewrite(folder: Path, change, file: str = WEIGHTS) -> None:
    tensors = load_file(folder / file)
    save_file(change(tensors), folder / file, metadata={"format": "pt"})


def configure(folder: Path, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def taus(base: Path, folder: Path):
    return task_vectors(open_pool(str(base), {"x": str(folder)}))


SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("full", "dtype", "options"),
    [
        (False, SINGLE, {"lora_alpha": 12}),
        (False, DOUBLE, {"lora_alpha": 12}),
        (False, DOUBLE, {"use_rslora": True, "bias": "lora_only"}),
        (
            False,
            SINGLE,
            {
                "rank_pattern": {"encoder.layers.1.self_attn.q_proj": 2},
                "alpha_pattern": {"v_proj": 3},
                "modules_to_save": ["post_layernorm"],
                "bias": "all",
            },
        ),
        (
            False,
            DOUBLE,
            {"target_modules": ["patch_embedding", "position_embedding", "fc1", "out_proj"]},
        ),
        (True, DOUBLE, {"target_modules": TOWER, "modules_to_save": ["visual_projection"]}),
        (True, SINGLE, {"target_modules": "visual_projection|" + TOWER}),
    ],
    ids=["plain", "plain64", "rslora", "patterns", "layers", "full", "projection"],
)
def test_what_peft_merges(tiny, tmp_path, dtype, full, options):
    base = tiny.base(tmp_path / "base", dtype=dtype)
    model = lora(base, full=full, dtype=dtype, **options)
    model.save_pretrained(tmp_path / "lora")
    found = taus(base, tmp_path / "lora")
    wanted = {
        name.removeprefix(PREFIX): tensor.double()
        for name, tensor in model.merge_and_unload().state_dict().items()
    }
    origin = dict(inspect(str(base), "base").tensors)
    assert (PROJECTION in found.deltas) == ("visual_projection" in str(options))
    before = {name.removeprefix(PREFIX): t.double() for name, t in tiny.state.items()}
    for name, deltas in found.deltas.items():
        assert deltas.dtype == dtype
        assert name in origin
        close = {"rtol": 0, "atol": 1e-13 if dtype == torch.float64 else 2e-7}
        torch.testing.assert_close(deltas[0].double(), wanted[name] - before[name], **close)


def test_only_adapted_weights_move_and_by_the_product_itself(base, plain):
    found = taus(base, plain)
    moved = {name for name, deltas in found.deltas.items() if deltas.any()}
    parts = ("q_proj", "v_proj")
    assert moved == {
        f"encoder.layers.{i}.self_attn.{part}.weight" for i in (0, 1) for part in parts
    }
    tensors = load_file(plain / WEIGHTS)
    layer = "base_model.model.encoder.layers.0.self_attn.q_proj.lora_"
    wanted = (2.0 * tensors[f"{layer}B.weight"]) @ tensors[f"{layer}A.weight"]  # s = α/r = 8/4
    assert torch.equal(found.deltas[Q][0], wanted)
    assert torch.linalg.matrix_rank(found.deltas[V][0], rtol=1e-5) == 4


def linearized(model, folder: Path, initial) -> None:
    """As FusionBench lays a linearised adapter out: what trains, its initial value beside it."""
    from peft.tuners.lora import LoraLayer

    model.peft_config["default"].save_pretrained(folder)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for index, (key, parameter) in enumerate(module.named_parameters()):
                if parameter.requires_grad:
                    tensors[f"{name}.model.{key}"] = parameter.detach().clone()
                    tensors[f"{name}.params0_values.{index}"] = initial[f"{name}.{key}"]
    save_file(tensors, folder / LINEARIZED)


@pytest.mark.parametrize("zero", [True, False], ids=["B0=0", "B0"])
def test_an_l_lora_layer_is_its_first_order_expansion(tiny, tmp_path, zero):
    base = tiny.base(tmp_path / "base", dtype=torch.float64)
    model = lora(base, dtype=torch.float64, use_rslora=True)
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    for index, (name, first) in enumerate(initial.items()):
        if "lora_" in name:
            draw = torch.Generator().manual_seed(index)
            noise = torch.randn(first.shape, generator=draw, dtype=torch.float64)
            initial[name] = 0 * first if zero and "lora_B" in name else first + noise
    linearized(model, tmp_path / "lin", initial)
    tau = taus(base, tmp_path / "lin").deltas[Q][0]

    prefix = "base_model.model.encoder.layers.0.self_attn.q_proj"
    layer = model.get_submodule(prefix)
    there = {key: value.detach() for key, value in layer.named_parameters()}
    start = {key: initial[f"{prefix}.{key}"] for key in there}
    moved = {key: there[key] - start[key] for key in there}
    inputs = torch.randn(5, tau.shape[1], dtype=torch.float64)
    value, slope = jvp(lambda phi: functional_call(layer, phi, inputs), (start,), (moved,))
    weight, bias = there["base_layer.weight"], there["base_layer.bias"]
    torch.testing.assert_close(inputs @ (weight + tau).T + bias, value + slope)
    if zero:  # s·B·A₀, s = α/√r = 8/2
        wanted = 4 * there["lora_B.default.weight"] @ start["lora_A.default.weight"]
        torch.testing.assert_close(tau, wanted)


def test_tangent_models_average_exactly_and_products_do_not(base, tmp_path):
    """The mean of two tangent layers is the layer at the mean parameters; LoRA's is not."""
    one, two = (lora(base, seed=seed) for seed in (1, 2))
    start = {name: p.detach().clone() for name, p in lora(base, seed=3).named_parameters()}
    mean = lora(base)
    for (_, p), (_, a), (_, b) in zip(
        *(m.named_parameters() for m in (mean, one, two)), strict=True
    ):
        p.data = (a.data + b.data) / 2
    for label, save in (
        ("tangent", lambda model, folder: linearized(model, folder, start)),
        ("lora", lambda model, folder: model.save_pretrained(folder)),
    ):
        for name, model in (("one", one), ("two", two), ("mean", mean)):
            save(model, tmp_path / label / name)
        pair = {name: str(tmp_path / label / name) for name in ("one", "two")}
        averaged = task_vectors(open_pool(str(base), pair)).deltas[Q].mean(dim=0)
        of_mean = taus(base, tmp_path / label / "mean").deltas[Q][0]
        assert torch.allclose(averaged, of_mean, atol=1e-6) == (label == "tangent")


@pytest.fixture(scope="module")
def mixed(tiny, base, plain, tmp_path_factory):
    """A full model, an adapter in half precision, and one that brings tensors whole."""
    root = tmp_path_factory.mktemp("mixed")
    half = Path(shutil.copytree(plain, root / "half"))
    rewrite(half, lambda tensors: {name: t.half() for name, t in tensors.items()})
    lora(base, seed=2, r=3, modules_to_save=["post_layernorm"]).save_pretrained(root / "more")
    full = tiny.expert(root / "full", seed=1)
    experts = {"full": str(full), "half": str(half), "more": str(root / "more")}
    return open_pool(str(base), experts)


def test_a_mixed_pool_has_the_same_bits_from_memory_files_and_streamed(mixed):
    loaded, filed = task_vectors(mixed), filed_vectors(mixed)
    assert mixed.groups == tuple(loaded.deltas)
    for name in loaded.deltas:
        assert torch.equal(loaded.deltas[name], filed.deltas[name]), name
    coding = [0.5, -0.3, 0.7]
    table = torch.tensor(coding, dtype=torch.float64).view(1, 3, 1)
    assert_same_bits(dict(streamed(mixed, lambda name: coding)), mix(loaded, table))
    for method in ("task_arithmetic", "ties"):
        assert_same_bits(METHODS[method].merge(loaded), METHODS[method].merge(filed))


def test_what_is_counted_is_what_is_read(mixed):
    seen: list[int] = []
    load_flat(mixed, advance=seen.append)
    assert sum(seen) == mixed.read_bytes
    assert mixed.dtypes == {
        "base": "float32", "full": "float32", "half": "float16", "more": "float32"
    }  # fmt: skip
    more = mixed.experts["more"]
    assert set(more.tensors) == {"post_layernorm.weight", "post_layernorm.bias"}
    assert [name for name, _ in read_factors(more)] == list(more.factors)
    assert dict(read_factors(mixed.experts["full"])) == {}
    for name, factors in read_factors(more, [Q]):
        assert (name, factors.down.shape, factors.up.shape) == (Q, (3, 32), (32, 3))
        assert more.factors[name].rank == 3
        assert factors.up.dtype == more.factors[name].dtype
    sent = pickle.loads(pickle.dumps(mixed))
    assert torch.equal(task_vectors(sent).deltas[Q], task_vectors(mixed).deltas[Q])


def test_a_hash_is_of_configuration_and_weights(base, plain, copy):
    def of(folder):
        return content_hash(open_pool(str(base), {"x": str(folder)}).experts["x"])

    first = of(plain)
    assert of(copy) == first
    configure(copy, lora_alpha=16)
    assert of(copy) != first
    configure(copy, lora_alpha=8)
    rewrite(copy, lambda tensors: {name: t * 2 for name, t in tensors.items()})
    assert of(copy) != first


def test_a_snapshot_of_the_hub_is_whole_with_either_file(copy):
    assert is_adapter(copy)
    assert complete(copy)
    (copy / WEIGHTS).rename(copy / LINEARIZED)
    assert complete(copy)
    (copy / LINEARIZED).unlink()
    assert not complete(copy)


def test_text_factors_must_be_zero(base, tmp_path):
    model = lora(base, full=True, target_modules=r".*\.q_proj")
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(InputError, match=r"pool\.experts\.x: .*text_model.*lora_B.*not zero"):
        taus(base, tmp_path / "lora")

    def still(tensors):
        return {k: t * ("text_model" not in k or "lora_A" in k) for k, t in tensors.items()}

    rewrite(tmp_path / "lora", still)
    found = taus(base, tmp_path / "lora")
    assert found.deltas[Q].any()
    assert not any("text" in name for name in found.deltas)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, r"adapter_config\.json: peft_type: 'LOHA'; allowed: LORA"),
        ({"use_dora": True}, r"use_dora: True; allowed: unset"),
        ({"lora_bias": True}, r"lora_bias: True; allowed: unset"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' changes .*; allowed: true"),
        ({"r": 0}, r"PEFT cannot read it|r: 0; a positive whole number needed"),
        ({"r": 8}, r"shape \[4, 32\]; .*rank 8 .* need A \[8, 32\], B \[32, 8\]"),
        ({"rank_pattern": {"q_proj": "2"}}, r"rank_pattern\.q_proj: '2'; a positive whole number"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank 2 of adapter_config.json need A \[2, 32\]"),
        ({"alpha_pattern": {"(": 2}}, r"PEFT cannot read it"),
        ({"lora_alpha": "many"}, r"lora_alpha: 'many'; a positive number needed"),
    ],
)
def test_configurations_that_will_not_do(base, copy, fields, message):
    configure(copy, **fields)
    with pytest.raises(InputError, match=message) as caught:
        taus(base, copy)
    assert str(caught.value).startswith(f"pool.experts.x: {copy}")
    assert "\n" not in str(caught.value)


WRAPPED = "base_model.model."

LAYER = "encoder.layers.0.self_attn.q_proj"

A, B = (f"{WRAPPED}{LAYER}.lora_{part}.weight" for part in "AB")

NORM = f"{WRAPPED}post_layernorm.bias"


def renamed(tensors, old: str, new: str):
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != B}, "lora_A.*no lora_B beside it"),
        (lambda t: t | {A: t[A][:, :-1].clone()}, r"shape \[4, 31\]; the base's"),
        (lambda t: t | {A: t[A] * float("nan")}, "lora_A.*NaN or Inf"),
        (
            lambda t: {k: v * 1e30 for k, v in t.items()},
            r"_proj.weight': \d+ of 1024 are NaN or Inf",
        ),
        (lambda t: t | {A: t[A].long()}, "int64; floating point needed"),
        (lambda t: renamed(t, "layers.0", "layers.9"), "layers.9.*weight' not in the base"),
        (lambda t: renamed(t, "layers.0.self_attn.q_proj", "layers.0.layer_norm1"), "need A"),
        (
            lambda t: t | {f"{WRAPPED}classifier.bias": torch.ones(2)},
            "'classifier.bias' not in the",
        ),
        (lambda t: t | {NORM: torch.ones(2)}, r"float32 \[2\]; the base has \[32\]"),
        (
            lambda t: t | renamed({A: 1 * t[A], B: 1 * t[B]}, "enc", "vision_model.enc"),
            "there twice",
        ),
        (lambda t: t | {A.replace("lora_A", "base_layer"): torch.eye(32)}, "there twice"),
        (
            lambda t: t | {A.replace("lora_A", "lora_A.other"): torch.eye(32)},
            "there twice, also as",
        ),
        (lambda t: t | {f"{WRAPPED}{LAYER}.params0_values.2": 1 * t[A]}, "not in the base"),
        (lambda t: {NORM: torch.ones(32)}, "holds no LoRA factor"),
    ],
)
def test_weights_that_will_not_do(base, copy, change, message):
    rewrite(copy, change)
    with pytest.raises(InputError, match=message) as caught:
        taus(base, copy)
    assert str(caught.value).startswith(f"pool.experts.x: {copy / WEIGHTS}: ")
    assert "\n" not in str(caught.value)


def test_folders_that_will_not_do(tiny, base, copy):
    def refused(message, **pool):
        with pytest.raises(InputError, match=message):
            open_pool(**{"base": str(base), "experts": {"x": str(copy)}} | pool)

    refused("only pool.experts may be adapters", base=str(copy))
    (copy / WEIGHTS).rename(copy / LINEARIZED)
    refused(r"lora_A.*initial values of both \(params0_values\) are needed")
    shutil.copy(copy / LINEARIZED, copy / WEIGHTS)
    refused("which is meant")
    (copy / LINEARIZED).unlink()
    tiny.expert(copy, seed=1)
    refused("an adapter or a model")
    (copy / "model.safetensors").unlink()
    (copy / WEIGHTS).rename(copy / "adapter_model.bin")
    refused(r"adapter_model\.bin is a pickle")
    (copy / "adapter_model.bin").unlink()
    refused("no adapter_model.safetensors and no linearized")
    (copy / "adapter_config.json").write_text("[1]")
    refused("adapter_config.json: not a JSON object")


def test_an_adapter_whose_file_is_gone_is_named_where_it_has_a_part(base, plain, copy):
    pool = open_pool(str(base), {"stays": str(plain), "goes": str(copy)})
    filed = filed_vectors(pool)
    (copy / WEIGHTS).unlink()
    kept = mix(filed, torch.tensor([1.0, 0.0]).view(1, 2, 1))
    assert torch.equal(kept[Q], filed.base[Q] + taus(base, plain).deltas[Q][0])
    with pytest.raises(Vanished, match=r"pool\.experts\.goes: .*adapter_model\.safetensors"):
        METHODS["simple_average"].merge(filed)
