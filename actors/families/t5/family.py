"""T5 as a model family: encoder, decoder and output are fused; answers are scored as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from actors.artifacts.published_gate import PublishedLayout
from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task
from actors.data.text.tokenizer import (
    check_vocabulary,
    difference,
    known_tokenizer,
    open_tokenizer,
)
from actors.families.protocol import EncoderStates, Layout, Offer, Segment, Training
from actors.families.t5.architecture import SHARED, activations, input_of, is_linear
from actors.families.t5.heads import check_no_head, head_fingerprints, task_heads
from actors.families.t5.inputs import T5Inputs, t5_inputs
from actors.families.t5.inspect import inspected
from actors.families.t5.segments import t5_segments
from actors.families.t5.usage import T5_USAGE
from actors.families.t5.validation import check_aliases, check_architecture
from actors.families.usage import Usage
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError


@dataclass(frozen=True)
class T5:
    """`ModelFamily` of T5, T5 v1.1 and Flan-T5."""

    name: ClassVar[str] = "t5"
    model_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"t5": ("T5ForConditionalGeneration",)}

    def offers(self, base: Checkpoint) -> frozenset[Offer]:
        """Blocks with a feed-forward; written answers."""
        return frozenset({"mlp_blocks", "answers"})

    def training(self) -> Training:
        """Fine-tuning on the answers of a task: all weights, or LoRA."""
        # Late: sweeps that only merge do not need it, and start faster.
        from actors.families.t5.fine_tune import t5_training

        return t5_training()

    def inspect(
        self, source: str, folder: Path, config: Mapping[str, Any], name: str
    ) -> Checkpoint:
        """A T5ForConditionalGeneration. See `inspected`."""
        return inspected(source, folder, config, name)

    def canonical(self, key: str) -> str:
        """The name as it is: `transformers` has had one layout."""
        return key

    def check_base(self, base: Checkpoint) -> None:
        """Every T5 can be the base of a pool."""

    def check_expert(self, base: Checkpoint, expert: Checkpoint) -> None:
        """Raise InputError where an expert's fields or ties are not the base's."""
        check_architecture(base, expert)

    def check_model(self, base: Checkpoint) -> None:
        """Raise InputError where the tokenizer has tokens that the model has not."""
        check_vocabulary(open_tokenizer(base.folder, base.name), base.fields["vocab_size"])

    def fused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> tuple[str, ...]:
        """All tensors."""
        return tuple(base.tensors)

    def check_unfused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> None:
        """Raise InputError where other names of the embeddings hold other values."""
        check_aliases(base, experts)

    def tempered(
        self, base: Checkpoint, fused: Mapping[str, Tensor], beta: float
    ) -> dict[str, Tensor]:
        """None: no tensor scales the scores of answers."""
        return {}

    def exported(self, base: Checkpoint) -> dict[str, Any]:
        """Ties and scale: versions of `transformers` derive them from other fields each."""
        fields = base.fields
        return {"tie_word_embeddings": fields["tied"], "scale_decoder_outputs": fields["scaled"]}

    def usage(self, base: Checkpoint) -> Usage:
        """Code of a model card."""
        return T5_USAGE

    def segments(self, base: Checkpoint) -> tuple[Segment, ...]:
        """Embeddings, blocks of both sides, output. See `t5_segments`."""
        return t5_segments(base)

    def layout(self, base: Checkpoint) -> Layout:
        """Of both sides, for rows of a typical length at most."""
        forward, training, sampled = activations(base.fields)
        linear = [name for name in base.tensors if is_linear(name)]
        tied = [SHARED] if base.fields["tied"] else []
        return Layout(
            forward_elements=forward,
            training_elements=training,
            sampled_elements=sampled,
            shared_inputs={name: input_of(name) for name in (*tied, *linear)},
        )

    def width(self, base: Checkpoint) -> int:
        """Not defined.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{base.name}: {base.folder}: the output of a t5 model has a column an answer, and no"
            " one width"
        )

    def encoder_states(self, base: Checkpoint) -> EncoderStates:
        """The memory of the decoder: the encoder's states after its norm."""
        stop = base.fields["num_layers"] + 2
        return EncoderStates(stop, "memory", "source_mask", base.fields["d_model"])

    def published_layout(self, groups: Sequence[str]) -> PublishedLayout | None:
        """Of the gates for LoRA on every q and v: one output for each, in canonical order."""
        if SHARED not in groups:
            return None
        keys = tuple(name for name in groups if name.endswith((".q.weight", ".v.weight")))
        sources = {name: name if name in keys else None for name in groups}
        return PublishedLayout(keys, sources, f"{len(keys)} keys, of every q and v")

    def inputs(self, base: Checkpoint) -> T5Inputs:
        """Prompts, and the trees of answers."""
        return t5_inputs(base)

    def difference(self, base: Path, expert: Path) -> str | None:
        """How an expert's tokenizer differs from the base's."""
        ours = open_tokenizer(base, "pool.base")
        return difference(ours, known_tokenizer(expert, "pool.experts"))

    def companions(self, base: Checkpoint) -> dict[str, str]:
        """Of the tokenizer."""
        return {"tokenizer": str(open_tokenizer(base.folder, base.name).fingerprint)}

    def own_heads(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
        """None: no expert brings a head."""
        return {}

    def check_heads(self, base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
        """No files; raise InputError where a task names one."""
        check_no_head(tasks)
        return {}

    def check_tasks(self, base: Checkpoint, tasks: Mapping[str, Task]) -> None:
        """Raise InputError where the tokenizer cannot tell a task's answers apart or end them."""
        inputs = self.inputs(base)
        inputs.check(tasks.values())
        end = base.fields["eos_token_id"]
        if inputs.target_ids(["a"])[0][-1:] != [end]:
            raise InputError(
                f"{base.name}: {base.folder}: the tokenizer does not end a text with token {end},"
                " config.json's eos_token_id; scores of answers need that"
            )

    def head_fingerprints(
        self, base: Checkpoint, tasks: Mapping[str, Task]
    ) -> dict[str, Fingerprint]:
        """Of each task's answers."""
        return head_fingerprints(self.inputs(base), tasks)

    def heads(self, base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
        """Files of each task's answers."""
        return task_heads(self.inputs(base), tasks, root)


T5_FAMILY = T5()
