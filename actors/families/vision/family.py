"""ViT and ResNet image classifiers as a model family.

The classifier is fused with the body, as in the model soups paper (arXiv:2203.05482): the output is
logits [B, C], and base and experts have the same classes in the same order. Batch norm's running
statistics are no task vectors: `rest` of a checkpoint holds them, see `actors.pool.running`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.images.inputs import ImageInputs
from actors.data.images.preprocessor_config import difference, of_classifier, read_classifier
from actors.data.task import Task
from actors.families.fused_classifier import check_fused, check_same_order
from actors.families.protocol import Layout, Offer, Segment, Training
from actors.families.usage import Usage
from actors.families.vision.activations import activations
from actors.families.vision.architecture import OUT, RESNET, VIT, canonical
from actors.families.vision.heads import head_fingerprints, task_heads
from actors.families.vision.inspect import CLASSIFIES, inspected
from actors.families.vision.segments import check_size, input_of, is_linear, vision_segments
from actors.families.vision.usage import VISION_USAGE
from actors.families.vision.validation import check_architecture, check_base
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError


@dataclass(frozen=True)
class Vision:
    """`ModelFamily` of ViT and ResNet classifiers."""

    name: ClassVar[str] = "vision"
    model_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        VIT: (f"ViT{CLASSIFIES}",),
        RESNET: (f"ResNet{CLASSIFIES}",),
    }

    def offers(self, base: Checkpoint) -> frozenset[Offer]:
        """Of a ViT, blocks with an MLP. The output is logits, so there are no embeddings."""
        if base.fields["model_type"] == RESNET:
            return frozenset({"float16"})
        return frozenset({"mlp_blocks", "float16"})

    def training(self) -> Training:
        """Fine-tuning of body and classifier."""
        # Late: sweeps that only merge do not need it, and start faster.
        from actors.families.vision.fine_tune import vision_training

        return vision_training()

    def inspect(
        self, source: str, folder: Path, config: Mapping[str, Any], name: str
    ) -> Checkpoint:
        """A classifier, or the body of one. See `inspected`."""
        return inspected(source, folder, config, name)

    def canonical(self, key: str) -> str:
        """The name without the body's prefix, modules under the names of the hub's files."""
        return canonical(key)

    def check_base(self, base: Checkpoint) -> None:
        """Raise InputError where the base has no classifier."""
        check_base(base)

    def check_expert(self, base: Checkpoint, expert: Checkpoint) -> None:
        """Raise InputError where an expert's fields, tensors or classes are not the base's."""
        check_architecture(base, expert)

    def check_model(self, base: Checkpoint) -> None:
        """Raise InputError where images are prepared to another size than a ViT's."""
        check_size(base, read_classifier(base.folder))

    def fused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> tuple[str, ...]:
        """All weights; running statistics are not among them."""
        return tuple(base.tensors)

    def check_unfused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> None:
        """Nothing is left that members must have in common."""

    def tempered(
        self, base: Checkpoint, fused: Mapping[str, Tensor], beta: float
    ) -> dict[str, Tensor]:
        """The fused classifier times β."""
        out = OUT[base.fields["model_type"]]
        names = [f"{out}.weight", f"{out}.bias"] if beta != 1.0 else []
        return {name: (beta * fused[name]).to(fused[name].dtype) for name in names if name in fused}

    def exported(self, base: Checkpoint) -> dict[str, Any]:
        """None: the base's file says all."""
        return {}

    def usage(self, base: Checkpoint) -> Usage:
        """Code of a model card."""
        return VISION_USAGE

    def segments(self, base: Checkpoint) -> tuple[Segment, ...]:
        """The first layer, one segment for each layer, the classifier. See `vision_segments`."""
        return vision_segments(base)

    def layout(self, base: Checkpoint) -> Layout:
        """Activation sizes, at the size that images are prepared to."""
        side = read_classifier(base.folder).size
        forward, training, sampled = activations(base.fields, side)
        return Layout(
            forward_elements=forward,
            training_elements=training,
            sampled_elements=sampled,
            shared_inputs={name: input_of(name) for name in base.tensors if is_linear(name)},
        )

    def width(self, base: Checkpoint) -> int:
        """The number of classes.

        Raises:
            InputError: no classifier.
        """
        check_base(base)
        return len(base.fields["labels"])

    def published_layout(self, groups: Sequence[str]) -> None:
        """None: no gates for these models are published."""

    def encoder_states(self, base: Checkpoint) -> None:
        """None: there are no states of tokens that gates read."""

    def inputs(self, base: Checkpoint) -> ImageInputs:
        """Inputs by its `preprocessor_config.json`."""
        return ImageInputs(read_classifier(base.folder))

    def difference(self, base: Path, expert: Path) -> str | None:
        """Difference of an expert's image processor from the base's."""
        return difference(base, expert, of_classifier)

    def companions(self, base: Checkpoint) -> dict[str, str]:
        """Fingerprint of the preprocessing."""
        return {"preprocessing": str(read_classifier(base.folder).fingerprint)}

    def own_heads(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
        """None: classifiers are fused. Raises InputError where their classes differ in order."""
        check_same_order(experts)
        return {}

    def check_heads(self, base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
        """None; raises InputError where a task names a head, or has other classes."""
        check_fused(base, tasks)
        return {}

    def check_tasks(self, base: Checkpoint, tasks: Mapping[str, Task]) -> None:
        """Raise InputError where a task names an objective of models that write text."""
        for name, task in tasks.items():
            if task.source.objective is not None:
                raise InputError(
                    f"tasks.{name}.objective: {task.source.objective!r}; none allowed: a classifier"
                    " has the entropy of its classes alone"
                )

    def head_fingerprints(
        self, base: Checkpoint, tasks: Mapping[str, Task]
    ) -> dict[str, Fingerprint]:
        """Of the number of classes."""
        return head_fingerprints(base, tasks)

    def heads(self, base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
        """The identity, for each task."""
        return task_heads(base, tasks, root)


VISION = Vision()
