"""What the plan says that autograd keeps, against what it keeps."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from actors.cluster.partition import Load, needs, scratch
from actors.data.images.inputs import ImageInputs
from actors.data.images.preprocessor_config import Preprocess
from actors.families.clip.architecture import DEFAULTS, PROJECTION, activations
from actors.families.clip.segments import Block, Embed, Project
from actors.families.protocol import Segment
from actors.shards.resident_model import Blueprint
from actors.shards.shard import Shard, Weights
from fusion.task_vectors.task_vectors import TaskVectors

WIDTH, HIDDEN, SIZE, PATCH, TASKS = 64, 256, 64, 16, ("a", "b", "c")
TOKENS = (SIZE // PATCH) ** 2 + 1
FIELDS = {
    "image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH, "intermediate_size": HIDDEN,
}  # fmt: skip


def shard_of(layers: int) -> Shard:
    """A random CLIP tower of that many layers, with random task vectors."""
    config = CLIPVisionConfig(
        **FIELDS, num_hidden_layers=layers, num_attention_heads=4, projection_dim=32
    )
    fields = {**DEFAULTS, **FIELDS, "num_attention_heads": 4}
    state = CLIPVisionModelWithProjection(config).state_dict()
    tensors = {
        name.removeprefix("vision_model."): tensor.detach()
        for name, tensor in state.items()
        if "position_ids" not in name
    }
    chain = [link(Embed, (fields, Preprocess(SIZE, None, (SIZE, SIZE))), EMBED)]
    for index in range(layers):
        prefix = f"encoder.layers.{index}."
        names = {f"layer.{n.removeprefix(prefix)}": n for n in tensors if n.startswith(prefix)}
        chain.append(link(Block, (fields,), names))
    last = ("post_layernorm.weight", "post_layernorm.bias", PROJECTION)
    chain.append(link(Project, (fields, 32), {name: name for name in last}))
    fused = [name for name in tensors if name != PROJECTION]
    deltas = {name: 1e-3 * torch.randn(len(TASKS), *tensors[name].shape) for name in fused}
    vectors = TaskVectors(TASKS, {name: tensors[name] for name in fused}, deltas)
    plan = Blueprint(tuple(chain), ImageInputs(Preprocess(SIZE, None, (SIZE, SIZE))), tensors)
    return Shard(plan, vectors, {task: torch.randn(5, 32) for task in TASKS})


EMBED = {
    "token.value": "embeddings.class_embedding",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "position_embedding.weight": "embeddings.position_embedding.weight",
    "pre_layrnorm.weight": "pre_layrnorm.weight",
    "pre_layrnorm.bias": "pre_layrnorm.bias",
}


def link(kind, arguments, names):
    return Segment(kind, arguments, names, 0)


def kept(layers: int, images: int, models: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights and task vectors aside."""
    shard = shard_of(layers)
    own = {t.untyped_storage().data_ptr() for t in shard.vectors.base.values()}
    own |= {t.untyped_storage().data_ptr() for t in shard.vectors.deltas.values()}
    seen: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixels = {"pixels": torch.zeros(images, 3, SIZE, SIZE, dtype=torch.uint8)}
    weights = Weights("k", coding=torch.full((models, len(TASKS), 1), 0.3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        context = shard.record(pixels, weights)
    assert context.outputs
    return sum(seen.values())


@pytest.mark.parametrize(("images", "models"), [(8, 1), (8, 8)])
def test_what_autograd_keeps_of_a_layer(images, models):
    layers = (kept(4, images, models) - kept(2, images, models)) / 2
    planned = activations({**FIELDS, "num_hidden_layers": 1})[2 if models > 1 else 1]
    assert layers / 4 / images == pytest.approx(planned, rel=0.06)


def test_merged_weights_of_several_models_are_planned():
    largest = 4 * 1024 * 4096
    load = Load((10**8,) * 4, 8, compute_itemsize=2, training_bytes=1, largest=largest)
    sampled = Load(
        (10**8,) * 4, 8, compute_itemsize=2, training_bytes=1, largest=largest, sampled=64
    )
    assert scratch(load, "cuda") == 0
    # Sums, what they are rounded to, dW and its float32 copy, of 256 MiB of bfloat16 each.
    assert scratch(sampled, "cuda") == (4 + 2 + 2 + 4) * 2**27
    more = needs(sampled, 1, "cuda")[0].device - needs(load, 1, "cuda")[0].device
    assert more == 12 * 2**27 - 2 * 10**8
    # A model smaller than the budget: all its models at once, no more.
    small = Load((4000,), 3, largest=4000, sampled=64)
    assert scratch(small, "cpu") == 64 * 4000
