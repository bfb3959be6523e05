"""CLIP as a model family: the vision tower is fused, the text tower makes zero-shot heads."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from actors.artifacts.published_gate import PublishedLayout
from actors.checkpoints.checkpoint import Checkpoint, read
from actors.data.images.inputs import ImageInputs
from actors.data.images.preprocessor_config import difference, read_preprocess
from actors.data.task import Task
from actors.families.clip.architecture import PREFIX, PROJECTION, activations
from actors.families.clip.build import check_towers
from actors.families.clip.inspect import inspected
from actors.families.clip.segments import clip_segments
from actors.families.clip.usage import CLIP_USAGE
from actors.families.clip.validation import check_architecture, check_base, check_unfused
from actors.families.clip.zero_shot_heads import (
    check_heads,
    check_prompts,
    head_fingerprints,
    known_tokenizer,
    task_heads,
)
from actors.families.protocol import Layout, Offer, Segment, Training
from actors.families.usage import Usage
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

SCALE = "logit_scale"


@dataclass(frozen=True)
class Clip:
    """`ModelFamily` of CLIP models."""

    name: ClassVar[str] = "clip"
    model_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "clip": ("CLIPModel",),
        "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    }

    def offers(self, base: Checkpoint) -> frozenset[Offer]:
        """Everything that methods may need."""
        return frozenset({"embeddings", "cosine_head", "mlp_blocks", "float16"})

    def training(self) -> Training:
        """Fine-tuning of the vision tower, and pretraining of a small CLIP."""
        # Late: sweeps that only merge need neither, and start faster.
        from actors.families.clip.training import clip_training

        return clip_training()

    def inspect(
        self, source: str, folder: Path, config: Mapping[str, Any], name: str
    ) -> Checkpoint:
        """Inspect a full CLIP, or a vision tower. See `inspected`."""
        return inspected(source, folder, config, name)

    def canonical(self, key: str) -> str:
        """The name without the vision tower's prefix."""
        return key.removeprefix(PREFIX)

    def check_base(self, base: Checkpoint) -> None:
        """Raise InputError where the base has no text tower, projections or logit scale."""
        check_base(base)

    def check_expert(self, base: Checkpoint, expert: Checkpoint) -> None:
        """Raise InputError where fields or tensors of the vision tower differ from the base's."""
        check_architecture(base, expert)

    def check_model(self, base: Checkpoint) -> None:
        """Raise InputError if the preprocessing's image size differs from the model's, or a tower
        cannot be built."""
        size = (base.fields["image_size"],) * 2
        if (shape := read_preprocess(base.folder).shape) != size:
            raise InputError(
                f"pool.base: {base.folder}: images are prepared to {shape}; the model takes {size}"
            )
        check_towers(base)

    def fused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> tuple[str, ...]:
        """The vision tower's tensors, and `visual_projection` if some expert has its own."""
        projected = any(expert.parts(PROJECTION) for expert in experts)
        return tuple(name for name in base.tensors if projected or name != PROJECTION)

    def check_unfused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> None:
        """Raise InputError where a text tower or a logit scale differs from the base's."""
        check_unfused(base, experts)

    def tempered(
        self, base: Checkpoint, fused: Mapping[str, Tensor], beta: float
    ) -> dict[str, Tensor]:
        """The logit scale times β: exp(s + ln β) = β·exp(s)."""
        if beta == 1.0 or SCALE not in base.rest:
            return {}
        return {name: scale + math.log(beta) for name, scale in read(base, [SCALE])}

    def exported(self, base: Checkpoint) -> dict[str, Any]:
        """None: the base's file says all."""
        return {}

    def usage(self, base: Checkpoint) -> Usage:
        """Code of a model card."""
        return CLIP_USAGE

    def segments(self, base: Checkpoint) -> tuple[Segment, ...]:
        """Embeddings, one segment for each layer, projection. See `clip_segments`."""
        return clip_segments(base)

    def layout(self, base: Checkpoint) -> Layout:
        """Activation sizes of the vision tower."""
        forward, training, sampled = activations(base.fields)
        return Layout(
            forward_elements=forward,
            training_elements=training,
            sampled_elements=sampled,
            shared_inputs={name: input_of(name) for name in base.tensors if is_linear(name)},
        )

    def width(self, base: Checkpoint) -> int:
        """Width of projected embeddings.

        Raises:
            InputError: no projection.
        """
        if PROJECTION not in base.tensors:
            raise InputError(f"{base.name}: {base.folder}: no {PROJECTION}; an extractor needs it")
        return base.tensors[PROJECTION].shape[0]

    def published_layout(self, groups: Sequence[str]) -> PublishedLayout | None:
        """As DAWE's original code has it for open_clip's towers."""
        # Late: only a sweep that names a published gate needs it.
        from actors.families.clip.published_gates import blocks_of, published_layout

        blocks = blocks_of(groups)
        return published_layout(blocks) if blocks else None

    def encoder_states(self, base: Checkpoint) -> None:
        """None: gates read projected embeddings."""

    def inputs(self, base: Checkpoint) -> ImageInputs:
        """Inputs by its `preprocessor_config.json`."""
        return ImageInputs(read_preprocess(base.folder))

    def difference(self, base: Path, expert: Path) -> str | None:
        """Difference of an expert's image processor from the base's."""
        return difference(base, expert)

    def companions(self, base: Checkpoint) -> dict[str, str]:
        """Fingerprints of the preprocessing and, if there is one, of the tokenizer."""
        found = {"preprocessing": str(read_preprocess(base.folder).fingerprint)}
        tokenizer = known_tokenizer(base)
        return found if tokenizer is None else {**found, "tokenizer": str(tokenizer.fingerprint)}

    def own_heads(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
        """None: experts are vision towers."""
        return {}

    def check_heads(self, base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
        """Check the head files that tasks name; zero-shot heads need a tokenizer."""
        return check_heads(base, tasks)

    def check_tasks(self, base: Checkpoint, tasks: Mapping[str, Task]) -> None:
        """Raise InputError where a prompt is too long for the text tower."""
        check_prompts(base, tasks)

    def head_fingerprints(
        self, base: Checkpoint, tasks: Mapping[str, Task]
    ) -> dict[str, Fingerprint]:
        """Fingerprint of each head file, or of everything that a zero-shot head is made from."""
        return head_fingerprints(base, tasks)

    def heads(self, base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
        """Zero-shot heads made by the text tower, or copies of given files."""
        return task_heads(base, tasks, root)


def is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    ends = ("_proj.weight", ".fc1.weight", ".fc2.weight")
    return name.endswith(ends) or name == PROJECTION


def input_of(name: str) -> str:
    """The weight under whose name statistics of a layer's input are stored: q's for q, k and v."""
    for part in (".k_proj.", ".v_proj."):
        name = name.replace(part, ".q_proj.")
    return name


CLIP = Clip()
