"""T5 checkpoints by headers: ties, aliases, scales; what is refused, by file and field."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.families.t5.architecture import ALIASES, LM_HEAD, SHARED, TABLES, UNUSED, t5_tensors
from actors.families.t5.family import T5
from actors.families.t5.segments import t5_segments
from actors.shards.resident_model import Blueprint, ResidentModel
from fusion.errors import InputError
from tests.actors.families.t5.models import (
    INPUTS,
    KINDS,
    D,
    V,
    opened,
    vectors_of,
    write_expert,
    write_model,
)

FAMILY = T5()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("t5")
    return {kind: write_model(root / kind, kind) for kind in KINDS}


@pytest.fixture
def folder(models, tmp_path):
    return write_expert(tmp_path / "model", models["v1.1"], 1)


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def say(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_order_are_those_of_transformers(kind, models):
    from transformers import T5Config, T5ForConditionalGeneration

    base = opened(models[kind])
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config.from_pretrained(models[kind]))
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if kind == "v1.1":  # the library's model is tied until its file says otherwise
        wanted[LM_HEAD] = (V, D)
    assert list(t5_tensors(base.fields).items()) == list(wanted.items())
    assert list(base.tensors) == list(wanted)
    assert (base.fields["tied"], base.fields["scaled"]) == (kind == "v1.0",) * 2


def test_sizes_of_flan_t5():
    from actors.families.t5.architecture import t5_fields

    base = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
    large = {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
    for sizes, parameters, tensors in ((base, 247_577_856, 282), (large, 783_150_080, 558)):
        fields = t5_fields({**sizes, "feed_forward_proj": "gated-gelu"}, False, "config.json")
        found = t5_tensors(fields)
        assert len(found) == tensors
        assert sum(torch.Size(shape).numel() for shape in found.values()) == parameters


def test_large_cut_by_work_has_even_shards():
    """By bytes the work of four shards is 46, 41, 7 and 6.5 %."""
    from actors.cluster.partition import cut
    from actors.families.t5.architecture import block_work, output_work, t5_fields

    sizes = {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
    fields = t5_fields({**sizes, "feed_forward_proj": "gated-gelu"}, False, "config.json")
    encoder, decoder = (block_work(fields, side) for side in ("encoder", "decoder"))
    work = [0, *[encoder] * 24, 0, *[decoder] * 24, output_work(fields)]
    shares = [sum(work[slice(*each)]) / sum(work) for each in cut(work, 4)]
    assert max(shares) < 0.28


def test_what_configurations_say_of_ties_is_not_asked(folder):
    for stated in (True, False):
        say(folder, tie_word_embeddings=stated, scale_decoder_outputs=False)
        assert not opened(folder).fields["tied"]


def test_loading_never_ties(folder):
    say(folder, tie_word_embeddings=True)
    base, tensors = opened(folder), load_file(folder / "model.safetensors")
    plan = Blueprint(t5_segments(base), INPUTS, vectors_of(base, [base], torch.float32).base)
    arena = ResidentModel(plan).arena
    assert torch.equal(arena[SHARED], tensors[SHARED])
    assert torch.equal(arena[LM_HEAD], tensors[LM_HEAD])
    assert not torch.equal(arena[SHARED], arena[LM_HEAD])


@pytest.mark.parametrize(
    ("stated", "scaled"),
    [
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
        ({}, True),
    ],
)
def test_scales_are_read_as_transformers_reads_them(stated, scaled, folder):
    from transformers import T5Config

    config = json.loads((folder / "config.json").read_text())
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config | stated))
    assert opened(folder).fields["scaled"] == scaled
    assert T5Config.from_pretrained(folder).scale_decoder_outputs == scaled


def test_aliases_are_dropped_once_they_are_known_to_be_equal(folder):
    rewrite(folder, lambda t: t | {name: t[SHARED].clone() for name in ALIASES})
    base = opened(folder)
    assert set(base.aliases) == set(ALIASES)
    assert not set(ALIASES) & set(base.tensors)
    FAMILY.check_unfused(base, [base])
    rewrite(folder, lambda t: t | {ALIASES[1]: t[SHARED] + 1})
    with pytest.raises(InputError, match=r"'decoder\.embed_tokens\.weight': differs from 'shared"):
        FAMILY.check_unfused(opened(folder), [])


def test_a_table_under_another_name_alone(folder):
    rewrite(folder, lambda t: {k if k != SHARED else ALIASES[0]: v for k, v in t.items()})
    base = opened(folder)
    assert (base.tensors[SHARED].key, base.aliases) == (ALIASES[0], {})


def test_an_unused_table_is_dropped(folder):
    rewrite(folder, lambda t: t | {UNUSED: torch.zeros(32, 2)})
    base = opened(folder)
    assert UNUSED not in (*base.tensors, *base.rest, *base.buffers, *base.aliases)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TABLES["decoder"]) * 0, "relative_attention_bias.weight': missing"),
        (lambda t: t.update({"other": torch.zeros(1)}), "'other': not part of a T5 model"),
        (
            lambda t: t.update({SHARED: t[SHARED][:-1].clone()}),
            r"shared.weight': shape \[39, 16\]; .*config.json says \[40, 16\]",
        ),
        (
            lambda t: t.update({SHARED: t[SHARED].half()}),
            "dtype float16, in which activations of T5 overflow; float32 or bfloat16 needed",
        ),
        (lambda t: t.update({SHARED: t[SHARED].int()}), "floating point needed"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(change, message, folder):
    rewrite(folder, lambda t: (change(t), t)[1])
    with pytest.raises(InputError, match=message) as error:
        opened(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d_model", 0, "d_model: 0; 1 to 16,384, whole, needed"),
        ("num_layers", "two", "num_layers: 'two'"),
        ("num_decoder_layers", -1, "num_decoder_layers: -1"),
        ("feed_forward_proj", "gated-silu", "'gated-silu'; relu or gated-gelu allowed"),
        ("layer_norm_epsilon", "x", "layer_norm_epsilon: 'x'; a number from 0 to 1 needed"),
        ("relative_attention_num_buckets", 6, "6; a multiple of 4 needed"),
        ("decoder_start_token_id", 40, "a token of the vocabulary, 0 to 39, needed"),
        ("scale_decoder_outputs", 1, "scale_decoder_outputs: 1; true or false needed"),
    ],
)
def test_fields_that_are_refused(field, value, message, folder):
    say(folder, **{field: value})
    with pytest.raises(InputError, match=rf"^pool\.base: .*config\.json: .*{message}") as error:
        opened(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decoder_start_token_id": 5}, "decoder_start_token_id: 5; config.json has 0"),
        ({"eos_token_id": [2, 3]}, r"eos_token_id: \[2, 3\]; config.json has 1"),
        ({"decoder_start_token_id": 0, "eos_token_id": [1, 3]}, None),
    ],
)
def test_tokens_of_generation_are_those_of_the_model(given, message, folder):
    (folder / "generation_config.json").write_text(json.dumps(given))
    if message is None:
        opened(folder)
        return
    with pytest.raises(InputError, match=rf"^pool\.base: .*generation_config\.json: {message}"):
        opened(folder)


def refusal(base, expert):
    with pytest.raises(InputError) as error:
        FAMILY.check_expert(opened(base), opened(expert, "pool.experts.a"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_members_of_other_architectures(models, folder, tmp_path):
    base = models["v1.1"]
    FAMILY.check_expert(opened(base), opened(folder, "pool.experts.a"))
    other = write_model(tmp_path / "vocabulary", vocab_size=V + 4)
    assert refusal(base, other).endswith("vocabulary/config.json: vocab_size: 44; the base has 40")
    assert "lm_head.weight': in the files of pool.base and not in those of pool.experts.a" in (
        refusal(base, models["v1.0"])
    )
    assert "in the files of pool.experts.a and not in those of pool.base" in (
        refusal(models["v1.0"], base)
    )
    say(folder, scale_decoder_outputs=True)
    assert "output is scaled by d_model^-1/2; the base's is not scaled" in refusal(base, folder)


def test_layers_that_share_their_input(models):
    shared = FAMILY.layout(opened(models["v1.1"])).shared_inputs
    assert set(shared.values()) == {
        LM_HEAD,
        *(f"encoder.block.{i}.layer.{end}.weight" for i in range(2) for end in (
            "0.SelfAttention.q", "0.SelfAttention.o", "1.DenseReluDense.wi_0",
            "1.DenseReluDense.wo",
        )),
        *(f"decoder.block.0.layer.{end}.weight" for end in (
            "0.SelfAttention.q", "0.SelfAttention.o", "1.EncDecAttention.q", "1.EncDecAttention.k",
            "1.EncDecAttention.o", "2.DenseReluDense.wi_0", "2.DenseReluDense.wo",
        )),
    }  # fmt: skip
    assert SHARED in FAMILY.layout(opened(models["v1.0"])).shared_inputs
