"""The depth of tensors by their names, for the families there are and for others."""

from __future__ import annotations

import pytest

from fusion.methods.static.depth import depths, layer_depths

FAMILIES = {
    "clip": {
        "vision_model.embeddings.class_embedding": 0.0,
        "vision_model.embeddings.patch_embedding.weight": 0.0,
        "vision_model.pre_layrnorm.weight": 0.0,
        "vision_model.encoder.layers.0.self_attn.k_proj.weight": 0.0,
        "vision_model.encoder.layers.6.mlp.fc1.bias": 6 / 11,
        "vision_model.encoder.layers.11.layer_norm2.weight": 1.0,
        "vision_model.post_layernorm.bias": 1.0,
        "visual_projection.weight": 1.0,
    },
    "flattened clip": {
        "embeddings.position_embedding.weight": 0.0,
        "pre_layrnorm.bias": 0.0,
        "encoder.layers.0.mlp.fc2.weight": 0.0,
        "encoder.layers.1.mlp.fc2.weight": 1.0,
        "post_layernorm.weight": 1.0,
    },
    "t5": {
        "shared.weight": 0.0,
        "encoder.embed_tokens.weight": 0.0,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 0.0,
        "encoder.block.2.layer.1.DenseReluDense.wo.weight": 2 / 3,
        "encoder.block.3.layer.0.SelfAttention.q.weight": 1.0,
        "encoder.final_layer_norm.weight": 1.0,
        "decoder.block.0.layer.2.DenseReluDense.wi_0.weight": 0.0,
        "decoder.block.1.layer.1.EncDecAttention.k.weight": 1.0,
        "decoder.final_layer_norm.weight": 1.0,
        "lm_head.weight": 1.0,
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": 0.0,
        "bert.embeddings.LayerNorm.weight": 0.0,
        "bert.encoder.layer.0.attention.self.query.weight": 0.0,
        "bert.encoder.layer.1.output.dense.weight": 0.5,
        "bert.encoder.layer.2.output.LayerNorm.bias": 1.0,
        "bert.pooler.dense.weight": 1.0,
        "classifier.weight": 1.0,
    },
    "llama": {
        "model.embed_tokens.weight": 0.0,
        "model.layers.0.self_attn.q_proj.weight": 0.0,
        "model.layers.4.mlp.up_proj.weight": 1.0,
        "model.norm.weight": 1.0,
        "lm_head.weight": 1.0,
    },
    "resnet": {
        "resnet.embedder.embedder.convolution.weight": 0.0,
        "resnet.encoder.stages.0.layers.1.layer.0.convolution.weight": 0.0,
        "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight": 1.0,
        "classifier.1.weight": 0.5,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_each_family(family: str) -> None:
    wanted = FAMILIES[family]
    assert depths(list(wanted)) == pytest.approx(wanted)
    assert depths(list(wanted)[::-1]) == pytest.approx(wanted)  # not by the order of the names


def test_a_stack_of_one_layer_is_in_the_middle() -> None:
    assert layer_depths(["net.5.w", "other.w"]) == {"net.5.w": 0.5}


def test_numbers_that_start_elsewhere_and_leave_some_out() -> None:
    assert layer_depths(["2.w", "4.w", "6.w"]) == {"2.w": 0.0, "4.w": 0.5, "6.w": 1.0}
