"""CLIP's vision tower as a chain: every weight once, and transformers' own numbers at every cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from actors.checkpoints.checkpoint import Checkpoint
from actors.families.clip.architecture import PROJECTION
from actors.families.clip.segments import (
    Block,
    Embed,
    EncoderLayer,
    LastBlock,
    Project,
    clip_segments,
)
from actors.families.protocol import Activations, compute_all_rows, segment_names
from actors.families.registry import inspect
from actors.shards.resident_model import ResidentModel
from fusion.errors import InputError
from tests.actors.conftest import DIM, SIZE, WIDTH, Tiny

CUTS = [
    [*itertools.pairwise((0, *inner, 4))]
    for count in range(4)
    for inner in itertools.combinations((1, 2, 3), count)
]


@pytest.fixture
def base(tiny: Tiny, tmp_path: Path) -> Checkpoint:
    return inspect(str(tiny.base(tmp_path / "base")), "pool.base")


@pytest.fixture
def pixels() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)


def test_every_tensor_is_in_one_segment(base: Checkpoint) -> None:
    chain = clip_segments(base)
    assert [link.kind for link in chain] == [Embed, Block, LastBlock, Project]
    names = [name for link in chain for name in link.names.values()]
    assert sorted(names) == sorted(base.tensors)
    assert len(set(names)) == len(names)
    for link in chain:
        module = link.build()
        shapes = {link.names[key]: tuple(p.shape) for key, p in module.named_parameters()}
        assert shapes == {name: tuple(base.tensors[name].shape) for name in link.names.values()}
        assert link.numel == sum(p.numel() for p in module.parameters())


def test_a_segment_is_built_without_weights(base: Checkpoint) -> None:
    state = torch.get_rng_state()
    for link in clip_segments(base):
        module = link.build()
        assert not module.training
        for parameter in module.parameters():
            assert parameter.is_meta
            assert not parameter.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_names_of_a_block(base: Checkpoint) -> None:
    chain = clip_segments(base)
    assert segment_names(chain, 0, 4) == tuple(n for link in chain for n in link.names.values())
    assert segment_names(chain, 1, 1) == ()
    assert all(name.startswith("encoder.layers.1.") for name in segment_names(chain, 2, 3))
    assert len(segment_names(chain, 2, 3)) == 16
    assert segment_names(chain, 3, 4)[-1] == PROJECTION


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_blocks_in_a_row_are_the_whole_to_the_bit(
    cut: list[tuple[int, int]], base: Checkpoint, pixels: torch.Tensor
) -> None:
    carry: Activations = {"pixels": pixels}
    held = []
    for block in cut:
        encoder = ResidentModel(base, block=block)
        held += list(encoder.arena)
        carry = encoder.run(carry)
        if block[1] < 4:
            assert carry.keys() == {"hidden"}
            assert carry["hidden"].shape == (3, 5 if block[1] < 3 else 1, WIDTH)
    assert carry.keys() == {"output"}
    whole = ResidentModel(base)
    assert sorted(held) == sorted(whole.arena)
    assert torch.equal(carry["output"], whole.outputs({"pixels": pixels}))


def test_equals_transformers_in_float64(base: Checkpoint, pixels: torch.Tensor) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(base.folder, attn_implementation="sdpa").double().eval()
    encoder = ResidentModel(base, dtype=torch.float64)
    images = encoder.inputs.preprocess.normalise(pixels, torch.float64)
    with torch.inference_mode():
        wanted = model.get_image_features(pixel_values=images).pooler_output
        states = model.vision_model(images, output_hidden_states=True).hidden_states
    found = encoder.outputs({"pixels": pixels})
    assert found.shape == (3, DIM)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    for stop, state in enumerate(states, start=1):
        part = ResidentModel(base, dtype=torch.float64, block=(0, stop)).run({"pixels": pixels})
        read = state if stop < len(states) else state[:, :1]  # the class token alone
        torch.testing.assert_close(part["hidden"], read, rtol=1e-10, atol=1e-12)
    encoder = ResidentModel(base, dtype=torch.float64, block=(0, len(states)))
    compute_all_rows(encoder.modules[-1], True)
    every = encoder.run({"pixels": pixels})["hidden"]
    torch.testing.assert_close(every, states[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "relu", "gelu_new"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_has_the_bits_of_transformers(act: str, dtype: torch.dtype) -> None:
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    sizes = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 3}
    config = CLIPVisionConfig(**sizes, hidden_act=act)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs, ours = CLIPEncoderLayer(config).eval(), EncoderLayer(config.to_dict()).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.to(dtype), ours.to(dtype)
    wanted, given = (torch.randn(3, 17, 96).to(dtype).requires_grad_() for _ in range(2))
    given.data.copy_(wanted.data)
    out = theirs(wanted, attention_mask=None)
    out = out[0] if isinstance(out, tuple) else out
    found = ours(given)
    assert torch.equal(found, out)
    out.square().sum().backward()
    found.square().sum().backward()
    assert wanted.grad is not None
    assert given.grad is not None
    # Of quick GELU the gradient is made by one operation, which rounds otherwise.
    rtol = (1e-4 if dtype == torch.float32 else 5e-2) if act == "quick_gelu" else 0.0
    pairs = [(given.grad, wanted.grad)]
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        pairs.append((mine.grad, its.grad))
    largest = max(float(other.norm()) for _, other in pairs)  # that of k's bias is 0 but for noise
    for one, other in pairs:
        assert float((one - other).norm()) <= rtol * max(float(other.norm()), 1e-2 * largest)


def test_no_projection(tiny: Tiny, tmp_path: Path) -> None:
    tower = inspect(str(tiny.expert(tmp_path / "tower", 1)), "pool.base")
    with pytest.raises(InputError, match=rf"^pool\.base: .*no {PROJECTION}"):
        clip_segments(tower)


def test_images_of_another_size(base: Checkpoint) -> None:
    file = base.folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("32", "64"))
    with pytest.raises(InputError, match=r"prepared to \(64, 64\);.*takes \(32, 32\)"):
        clip_segments(base)
