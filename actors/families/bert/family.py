"""BERT and RoBERTa as a model family: encoders of text, and their classifiers.

The base decides how classifiers are treated.

* A base with a classifier (`…ForSequenceClassification`): experts are ingredients of one task, as
  in the model soups paper (arXiv:2203.05482, table 5). The classifier is fused with the encoder,
  and the output is logits [B, C]. All members have the same classes in the same order.
* A base without one (the encoder alone): experts are of tasks with classes of their own. The
  encoder is fused, and the pooler where the base has one; the output is the pooled first token
  [B, d]. The rest of each task's classifier is its head, from the expert of the task's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from actors.checkpoints.checkpoint import Checkpoint
from actors.data.task import Task
from actors.data.text.inputs import TextInputs
from actors.data.text.tokenizer import check_vocabulary, difference, known_tokenizer, open_tokenizer
from actors.families.bert.architecture import BERT, OUT, ROBERTA, activations, canonical
from actors.families.bert.heads import check_heads, head_fingerprints, own_heads, task_heads
from actors.families.bert.inputs import bert_inputs
from actors.families.bert.inspect import inspected
from actors.families.bert.segments import bert_segments, input_of, is_linear
from actors.families.bert.usage import bert_usage
from actors.families.bert.validation import check_architecture
from actors.families.protocol import EncoderStates, Layout, Offer, Segment, Training
from actors.families.usage import Usage
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

CLASSIFIER, TYPICAL = "ForSequenceClassification", 128
"""End of the classes' names; tokens of a text that memory is planned for, at most."""

FITS: frozenset[Offer] = frozenset({"mlp_blocks", "float16"})
"""What all of them offer."""


@dataclass(frozen=True)
class Bert:
    """`ModelFamily` of BERT and RoBERTa."""

    name: ClassVar[str] = "bert"
    model_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        BERT: ("BertModel", f"Bert{CLASSIFIER}"),
        ROBERTA: ("RobertaModel", f"Roberta{CLASSIFIER}"),
    }

    def offers(self, base: Checkpoint) -> frozenset[Offer]:
        """Blocks with an MLP; embeddings where the output is not logits."""
        return FITS if base.fields["labels"] else FITS | {"embeddings"}

    def training(self) -> Training:
        """Fine-tuning of classifiers."""
        # Late: sweeps that only merge do not need it, and start faster.
        from actors.families.bert.fine_tune import bert_training

        return bert_training()

    def inspect(
        self, source: str, folder: Path, config: Mapping[str, Any], name: str
    ) -> Checkpoint:
        """An encoder, with pooler and classifier where it has them. See `inspected`."""
        return inspected(source, folder, config, name)

    def canonical(self, key: str) -> str:
        """The name without the encoder's prefix, norms under today's names."""
        return canonical(key)

    def check_base(self, base: Checkpoint) -> None:
        """Every encoder and every classifier can be a base."""

    def check_expert(self, base: Checkpoint, expert: Checkpoint) -> None:
        """Raise InputError where an expert's fields, tensors or classes are not the base's."""
        check_architecture(base, expert)

    def check_model(self, base: Checkpoint) -> None:
        """Raise InputError where the tokenizer has tokens that the model has not."""
        check_vocabulary(open_tokenizer(base.folder, base.name), base.fields["vocab_size"])

    def fused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> tuple[str, ...]:
        """All that the base has."""
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
        return bert_usage(base)

    def segments(self, base: Checkpoint) -> tuple[Segment, ...]:
        """Embeddings, one segment a layer, pooler and classifier. See `bert_segments`."""
        return bert_segments(base)

    def layout(self, base: Checkpoint) -> Layout:
        """Of texts of 128 tokens, or of the longest where that is shorter."""
        tokens = min(TYPICAL, self.inputs(base).limit)
        forward, training, sampled = activations(base.fields, tokens)
        return Layout(
            forward_elements=forward,
            training_elements=training,
            sampled_elements=sampled,
            shared_inputs={name: input_of(name) for name in base.tensors if is_linear(name)},
        )

    def width(self, base: Checkpoint) -> int:
        """Of pooled first tokens; of a model with a classifier the number of classes."""
        return len(base.fields["labels"]) or int(base.fields["hidden_size"])

    def published_layout(self, groups: Sequence[str]) -> None:
        """None: no gates for these models are published."""

    def encoder_states(self, base: Checkpoint) -> EncoderStates:
        """Those of the last layer."""
        layers = base.fields["num_hidden_layers"]
        return EncoderStates(1 + layers, "hidden", "mask", base.fields["hidden_size"])

    def inputs(self, base: Checkpoint) -> TextInputs:
        """Texts of the task's columns: the first, and as its pair the others."""
        return bert_inputs(base)

    def difference(self, base: Path, expert: Path) -> str | None:
        """How an expert's tokenizer differs from the base's."""
        ours = open_tokenizer(base, "pool.base")
        return difference(ours, known_tokenizer(expert, "pool.experts"))

    def companions(self, base: Checkpoint) -> dict[str, str]:
        """Of the tokenizer."""
        return {"tokenizer": str(open_tokenizer(base.folder, base.name).fingerprint)}

    def own_heads(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
        """Experts with classifiers that are not fused -> their sources."""
        return own_heads(base, experts)

    def check_heads(self, base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
        """The files of the classifiers that are heads."""
        return check_heads(base, tasks)

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
        """Of each classifier that is a head; else of the number of classes."""
        return head_fingerprints(base, tasks)

    def heads(self, base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
        """Linear heads: of experts' classifiers, or the identity where logits are the output."""
        return task_heads(base, tasks, root)


BERT_FAMILY = Bert()
