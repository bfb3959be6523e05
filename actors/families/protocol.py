"""A model family: all that the system must know of one kind of model, as a protocol.

A family recognises a `config.json`, gives tensors canonical names, checks headers, describes the
model as a chain of segments, prepares inputs, makes heads and fine-tunes. Nothing else in the
system names a kind of model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from actors.artifacts.published_gate import PublishedLayout
from actors.checkpoints.checkpoint import Checkpoint
from actors.data.protocol import OUTPUT as OUTPUT
from actors.data.protocol import Activations as Activations
from actors.data.protocol import Inputs
from actors.data.task import Task
from actors.data.task_rows import Rows
from actors.families.usage import Usage
from actors.files.fingerprint import Fingerprint
from fusion.errors import InputError

Offer: TypeAlias = Literal["embeddings", "cosine_head", "mlp_blocks", "float16", "answers"]
"""What some methods need of a family: an output that is an embedding, heads of normalised
embeddings, blocks with an MLP that routers can replace; what `placement.dtype: float16` needs:
activations that do not overflow there; and what the metric `exact` needs: answers that are written
token by token."""


@dataclass(frozen=True)
class Segment:
    """One link of the chain: a module from activations to activations, and its parameters."""

    kind: type[nn.Module]
    arguments: tuple[Any, ...]
    names: Mapping[str, str]
    """The module's own parameter names -> canonical names. Two parameters of one canonical name, in
    one segment or in several, are tied: they hold the same values, and their gradients add up."""
    numel: int
    """Parameters."""
    mlp: str | None = None
    """Path of the submodule that a router may replace; None if the segment has no MLP."""
    width: int = 0
    """Last axis of the MLP's input, which a router reads."""
    work: float | None = None
    """Multiplications a row, by which models are cut into shards where all segments state it, with
    what merging costs; None: not stated."""
    lookups: int = 0
    """Elements a row that are looked up in tables, if the segment does nothing else: only these are
    merged for a coding. 0: all parameters are."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """The module's own name of a linear layer's weight -> the activation that masks the layer's
    input, where it is another one than `mask`."""
    running: Mapping[str, str] = field(default_factory=dict)
    """The module's own name of a running statistic of batch norm -> its canonical name. These are
    buffers: no weights, and never fused."""

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The module on the meta device, frozen, in evaluation mode; nothing drawn or loaded.

        Args:
            dtype: of its activations, given to modules that have an attribute `dtype`.
        """
        with torch.device("meta"):
            module = self.kind(*self.arguments).eval().requires_grad_(False)
        if "dtype" in vars(module):
            module.dtype = dtype  # type: ignore[assignment]
        return module


def compute_all_rows(module: nn.Module, on: bool) -> None:
    """Make a built segment compute all tokens of its rows, or only those that are read later.

    The last layer of a model may have an attribute `whole`. Statistics of layer inputs, and routers
    that average over tokens, need all tokens.
    """
    if "whole" in vars(module):
        module.whole = on  # type: ignore[assignment]


@dataclass(frozen=True)
class Layout:
    """What planning and reports need to know of a model."""

    forward_elements: int
    """Elements of activations a row at the peak of a forward pass."""
    training_elements: int
    """Elements that autograd keeps a row."""
    sampled_elements: int
    """The same where each row has a model of its own."""
    shared_inputs: Mapping[str, str] = field(default_factory=dict)
    """Weight of a linear layer -> the weight under whose name the statistics of its input are kept
    (its own, or that of a layer with the same input)."""


@dataclass(frozen=True)
class EncoderStates:
    """Where a model's encoder leaves its last states of tokens, whose mean a gate can read."""

    stop: int
    """Segments [0, stop) of the chain make them."""
    name: str
    """Of the activation [B, n, d]."""
    mask: str
    """Of the activation [B, n] that is False at padding."""
    width: int
    """d."""


def segment(
    base: Checkpoint,
    kind: type[nn.Module],
    arguments: tuple[Any, ...],
    names: Mapping[str, str],
    mlp: str | None = None,
    width: int = 0,
    **more: Any,
) -> Segment:
    """A segment, sized by the checkpoint's headers; a tied tensor counts once.

    Args:
        more: further fields of `Segment`.
    """
    numel = sum(math.prod(base.tensors[name].shape) for name in dict.fromkeys(names.values()))
    return Segment(kind, arguments, names, numel, mlp, width, **more)


def check_untied(chain: tuple[Segment, ...], what: str) -> None:
    """Raise InputError where layers share a tensor; for families that do not support ties.

    Args:
        chain: all segments of a model.
        what: how the message begins.
    """
    names = [name for link in chain for name in link.names.values()]
    if tied := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"{what}: tensor {tied!r}: shared by several layers, which is not supported here"
        )


def segment_names(chain: tuple[Segment, ...], start: int, stop: int) -> tuple[str, ...]:
    """Canonical names of all tensors of the segments [start, stop), each once."""
    found = (name for link in chain[start:stop] for name in link.names.values())
    return tuple(dict.fromkeys(found))


Judge: TypeAlias = Callable[[float, Callable[[Rows], Tensor]], None]
"""Callback with an unfinished model: (fraction of the steps done, rows -> logits [N, C])."""


def unjudged(share: float, logits: Callable[[Rows], Tensor]) -> None:
    """The callback that does nothing."""


@dataclass(frozen=True)
class Pretraining:
    """Pretraining of a small model of a family on the tasks' own rows.

    Hyper-parameters are the function's keyword parameters, with their ranges.
    """

    pretrain: Callable[..., Any]
    """pretrain(task -> captioned rows, out, *, sizes, state, …).

    A run that was killed continues from its `state`."""
    sizes: type[Any]
    """Dataclass of a small model's sizes."""
    inputs: Callable[[Any], Inputs]
    """Sizes -> preprocessing of the rows that it is pretrained on."""
    fine_tuning: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters with which such a base is fine-tuned where a training file gives none: a
    small, freshly made model takes a higher learning rate than a published one."""


@dataclass(frozen=True)
class Training:
    """Fine-tuning of a family's models, for `sweeps train`."""

    fine_tune: Callable[..., Path]
    """fine_tune(start, task, out, options, *, head, device, state, stops, advance, judge) -> `out`.

    Fine-tunes the model in the folder `start` on the fit rows of `task` (`TaskData`), and writes
    the expert's folder, and `<out>-ema` and `<out>-swa` if `options` ask for them. Each is missing
    or complete. Same arguments, same bits on the same kind of CPU, also for a run that was killed
    and continued from its `state`. `judge` is called after each of `stops`; see `Judge`."""
    options: type[Any]
    """Dataclass of the hyper-parameters, with their ranges."""
    stepwise: tuple[str, ...]
    """Hyper-parameters that are read at each step; a population changes these. The others determine
    the length of a run, or the state of its averages and its optimiser."""
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Hyper-parameter -> a value that its type allows and the family does not, and why."""
    start: Callable[[Checkpoint, Task, int, Path], None] | None = None
    """start(base, task, seed, folder): writes the model that all fine-tunings of a task start from,
    which is the base of a pool of its ingredients. None: they start from the base."""
    own_pools: bool = False
    """Whether a task's models are in no pool with another task's: their classifiers are fused."""
    check: Callable[[Checkpoint], None] = lambda base: None
    """Raises InputError where a base cannot be fine-tuned."""
    adaptable: Callable[[Checkpoint], tuple[str, ...]] = lambda base: ()
    """Last parts of the names of a base's layers that LoRA can adapt. `options` of a family that
    has any have a field `lora`: a mapping with the fields of `Lora`, or None."""
    pretraining: Pretraining | None = None
    """None: a base is needed."""


class ModelFamily(Protocol):
    """One kind of model. An implementation has no state and can be pickled."""

    @property
    def name(self) -> str:
        """Of the family: "clip"."""
        ...

    @property
    def model_types(self) -> Mapping[str, tuple[str, ...]]:
        """`model_type` of `config.json` -> classes of `transformers`, for messages."""
        ...

    def offers(self, base: Checkpoint) -> frozenset[Offer]:
        """What methods may need, and models like the base have."""
        ...

    def training(self) -> Training | None:
        """Its fine-tuning; None: models of the family are only merged here."""
        ...

    # ---------------------------------------------------------------- checkpoints, by headers alone

    def inspect(
        self, source: str, folder: Path, config: Mapping[str, Any], name: str
    ) -> Checkpoint:
        """The model in a folder, checked against its own configuration.

        Raises:
            InputError: missing, unknown or mis-shaped tensors, by file and tensor.
        """
        ...

    def canonical(self, key: str) -> str:
        """A tensor's name in a file -> its canonical name."""
        ...

    def check_base(self, base: Checkpoint) -> None:
        """Raise InputError where a checkpoint cannot be the base of a pool."""
        ...

    def check_expert(self, base: Checkpoint, expert: Checkpoint) -> None:
        """Raise InputError where an expert's architecture is not the base's."""
        ...

    def check_model(self, base: Checkpoint) -> None:
        """Raise InputError where no model can be built from the base's configuration."""
        ...

    def fused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> tuple[str, ...]:
        """The tensors that are fused, in the base's order."""
        ...

    # ------------------------------------------------------------------------------------- weights

    def check_unfused(self, base: Checkpoint, experts: Collection[Checkpoint]) -> None:
        """Raise InputError where a tensor that is not fused differs from the base's."""
        ...

    def tempered(
        self, base: Checkpoint, fused: Mapping[str, Tensor], beta: float
    ) -> dict[str, Tensor]:
        """Tensors, of a merged model or of its base, with the inverse temperature `beta` of logits
        in them, if any."""
        ...

    def exported(self, base: Checkpoint) -> dict[str, Any]:
        """Fields that `config.json` of a merged model must have, whatever the base's file says."""
        ...

    def usage(self, base: Checkpoint) -> Usage | None:
        """Code that uses an exported model with `transformers` alone, for its model card. None
        if the family has no such code."""
        ...

    # ------------------------------------------------------------------------------------ the model

    def segments(self, base: Checkpoint) -> tuple[Segment, ...]:
        """The model as a chain.

        Raises:
            InputError: a model that no chain can be made of.
        """
        ...

    def layout(self, base: Checkpoint) -> Layout:
        """Sizes of activations, layers that share inputs."""
        ...

    def width(self, base: Checkpoint) -> int:
        """Last axis of the output, which heads read.

        Raises:
            InputError: a model without an output of one width.
        """
        ...

    def encoder_states(self, base: Checkpoint) -> EncoderStates | None:
        """States of tokens that gates read the mean of; None: they read the output."""
        ...

    def published_layout(self, groups: Sequence[str]) -> PublishedLayout | None:
        """Order of the outputs of published layer-wise gates for a model with these tensors; None:
        it is no model of the family, or none are published."""
        ...

    # ------------------------------------------------------------------------------ rows and heads

    def inputs(self, base: Checkpoint) -> Inputs:
        """Its preprocessing.

        Raises:
            InputError: preprocessing that is not supported.
        """
        ...

    def difference(self, base: Path, expert: Path) -> str | None:
        """How an expert's preprocessing differs from the base's, in a line; None: not at all."""
        ...

    def companions(self, base: Checkpoint) -> dict[str, str]:
        """Name -> fingerprint of files beside the weights that decide results: `preprocessing`."""
        ...

    def own_heads(self, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, str]:
        """Experts that bring the head of the task of their name -> the source of that head, which
        is the task's `head` where the sweep file names none.

        Raises:
            InputError: experts whose heads cannot be in one pool.
        """
        ...

    def check_heads(self, base: Checkpoint, tasks: Mapping[str, Task]) -> dict[str, Path]:
        """The head files that tasks name, checked.

        Raises:
            InputError: a head file that does not fit; no means of making the other heads.
        """
        ...

    def check_tasks(self, base: Checkpoint, tasks: Mapping[str, Task]) -> None:
        """Raise InputError where no head can be made of a task's class names."""
        ...

    def head_fingerprints(
        self, base: Checkpoint, tasks: Mapping[str, Task]
    ) -> dict[str, Fingerprint]:
        """Task -> fingerprint of all that its head is made from."""
        ...

    def heads(self, base: Checkpoint, tasks: Mapping[str, Task], root: Path) -> dict[str, Path]:
        """Task -> head file in the cache folder `root`, made where missing.

        Raises:
            InputError: see `check_heads` and `check_tasks`.
        """
        ...
