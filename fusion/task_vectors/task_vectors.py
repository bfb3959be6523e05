"""Task vectors: a base state dict, and the difference of each expert to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fusion.errors import InputError
from fusion.task_vectors.lazy import LazyTensors, as_stored, for_mixing, widened
from fusion.task_vectors.packed import Packed, joined, on_gpu, packed, spanned

StateDict: TypeAlias = Mapping[str, Tensor]
"""Tensor name -> tensor; read-only by convention."""

Deltas: TypeAlias = Tensor
"""The T task vectors of one tensor, stacked: [T, *shape]."""

BLOCK = re.compile(r"(.+?\.\d+)\.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """Dtype in which sums are made: float32, or float64 if any input is float64.

    >>> accumulator(torch.bfloat16), accumulator(torch.float32, torch.float64)
    (torch.float32, torch.float64)
    """
    wide = torch.float32
    for dtype in dtypes:
        wide = torch.promote_types(wide, dtype)
    return wide


@dataclass(frozen=True, eq=False)
class TaskVectors:
    """Base θ₀ and task vectors τ_t = θ_t − θ₀ of T experts.

    `deltas` holds only floating-point tensors. Integer and bool buffers are equal in all models
    (checked) and are kept in `base`. Nothing is written to, except the tensors of `arena`: a merge
    writes its result there if the caller supplied them.
    """

    tasks: tuple[str, ...]
    """Names of the experts, the order of every T axis."""
    base: StateDict
    """Tensor name -> θ₀ [*shape], in the checkpoint's dtype."""
    deltas: Mapping[str, Deltas]
    """Tensor name -> τ [T, *shape], in `accumulator(base dtype, expert dtypes)`."""
    arena: StateDict | None = None
    """Tensors that merges write into; None: new memory."""
    groups: tuple[str, ...] = ()
    """Names of the floating-point tensors of the whole model, in order: the G axis of layer-wise
    codings and weights. A shard keeps the names of the whole model. Default: the names in
    `deltas`."""
    results: torch.dtype | None = None
    """Dtype that floating-point tensors of a merged model are rounded to, once, even if the arena
    has another dtype; None: the dtype of the base's tensor."""

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", tuple(self.deltas))

    @classmethod
    def from_state_dicts(cls, base: StateDict, experts: Mapping[str, StateDict]) -> TaskVectors:
        """Subtract `base` from each expert, in float32 (float64 if an input is float64).

        Raises:
            InputError: no expert; missing, extra, mis-shaped or non-finite tensors; integer buffers
                that differ. The message names the expert and the tensor.
        """
        if not experts:
            raise InputError("experts: none given; at least one is needed")
        for name, tensor in base.items():
            check_finite(tensor, name, "base")
        for task, expert in experts.items():
            check_names(base, expert, task)
        deltas = {
            name: stack_deltas(name, tensor, {task: experts[task][name] for task in experts})
            for name, tensor in base.items()
            if tensor.is_floating_point()
        }
        for name, tensor in base.items():
            if not tensor.is_floating_point():
                for task in experts:
                    check_equal(tensor, experts[task][name], name, task)
        return cls(tuple(experts), {name: base[name].detach() for name in base}, deltas)

    def restrict(self, names: Iterable[str]) -> TaskVectors:
        """The task vectors of some tensors only, as for one shard.

        Memory is shared, and `groups` stays that of the whole model.

        Raises:
            InputError: an unknown tensor name.
        """
        wanted = list(names)
        for name in wanted:
            if name not in self.base:
                raise InputError(f"tensor {name!r}: not in these task vectors")
        return replace(self, base=chosen(self.base, wanted), deltas=chosen(self.deltas, wanted))

    def altered(self, change: Callable[[str, Deltas], Deltas]) -> TaskVectors:
        """The same base with task vectors `change(name, τ)` [T, *shape], computed as they are read.

        `change` must return a new tensor and not write to its argument. A method that preprocesses
        task vectors is then a composition: DARE is another method on task vectors with dropped
        entries.

        >>> experts = {"a": {"w": torch.ones(2)}}
        >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts)
        >>> v.altered(lambda name, delta: 2 * delta).deltas["w"].tolist()
        [[2.0, 2.0]]
        """
        deltas = self.deltas
        made = LazyTensors(deltas, lambda name: change(name, deltas[name]))
        return replace(self, deltas=made)

    def only(self, task: str) -> TaskVectors:
        """The task vectors of one expert, without reading the others where that can be avoided.

        >>> experts = {"a": {"w": torch.ones(2)}, "b": {"w": torch.zeros(2)}}
        >>> v = TaskVectors.from_state_dicts({"w": torch.zeros(2)}, experts).only("a")
        >>> v.tasks, v.deltas["w"].tolist()
        (('a',), [[1.0, 1.0]])
        """
        at, deltas = self.tasks.index(task), as_stored(self.deltas)
        used = [float(name == task) for name in self.tasks]

        def row(name: str) -> Deltas:
            found = for_mixing(deltas, name, used, factors=False)
            assert isinstance(found, torch.Tensor)
            return found[at : at + 1]

        if isinstance(deltas, LazyTensors):
            return replace(self, tasks=(task,), deltas=LazyTensors(deltas, row))
        return replace(self, tasks=(task,), deltas=widened({name: row(name) for name in deltas}))

    def into(self, arena: StateDict) -> TaskVectors:
        """The same task vectors; merges are written into the tensors of `arena`."""
        return replace(self, arena=arena)

    def build_runs(
        self,
        fill: Callable[[str, Tensor, Tensor, Tensor], None],
        same: Callable[[str], Hashable] = lambda name: None,
    ) -> dict[str, Tensor]:
        """Make a merged state dict from a rule that treats elements alike, wherever they are.

        Args:
            fill: (name, out [*shape], base [*shape], τ [T, *shape]) writes `out`. On a GPU the
                three may be a run of packed tensors: [n], [n] and [T, n]; the name is the first's.
                τ may be in bfloat16.
            same: name of a tensor -> what `fill` takes from the name; a run has one value.
        """
        deltas = as_stored(self.deltas)
        if not on_gpu(deltas):
            return self.build(lambda name, out: fill(name, out, self.base[name], deltas[name]))

        def fill_all(outs: StateDict) -> None:
            names = [name for name in self.base if name in deltas]
            values = {name: same(name) for name in names}
            for run in joined(names, [self.base, deltas, outs], values):
                out, base = spanned(outs, run), spanned(self.base, run)
                fill(run[0], out, base, spanned(deltas, run, 1))

        return self.build_whole(fill_all)

    def build_whole(self, fill: Callable[[StateDict], None]) -> dict[str, Tensor]:
        """Make a merged state dict: `fill(outs)` writes all floating-point tensors at once.

        Without an arena `outs` is packed. Integer and bool buffers are copied from the base.
        """
        kinds = {
            name: self.results if self.results and name in self.deltas else tensor.dtype
            for name, tensor in self.base.items()
        }
        arena = self.arena
        direct = arena is not None and all(
            arena[name].dtype == kind and arena[name].is_contiguous()
            for name, kind in kinds.items()
        )
        shapes = {name: (tensor.shape, kinds[name]) for name, tensor in self.base.items()}
        device = next(iter(self.base.values())).device
        outs = arena if arena is not None and direct else packed(shapes, device)
        with torch.no_grad():
            fill(outs)
            copy_all([name for name in self.base if name not in self.deltas], self.base, outs)
            if arena is not None and not direct:
                copy_all(list(self.base), outs, arena)
                outs = arena
            return {name: outs[name] for name in self.base}

    def build(self, fill: Callable[[str, Tensor], None]) -> dict[str, Tensor]:
        """Make a merged state dict: `fill(name, out)` writes each floating-point tensor.

        Integer and bool buffers are copied from the base.
        """
        merged = {}
        with torch.no_grad():  # the tensors of an arena may be a model's parameters
            for name, tensor in self.base.items():
                kind = self.results if self.results and name in self.deltas else tensor.dtype
                place = None if self.arena is None else self.arena[name]
                if place is not None and place.dtype == kind:
                    out = place
                else:
                    out = torch.empty_like(
                        tensor, dtype=kind, memory_format=torch.contiguous_format
                    )
                if name in self.deltas:
                    fill(name, out)
                else:
                    out.copy_(tensor)
                merged[name] = out if place is None or place is out else place.copy_(out)
        return merged


def chosen(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The mapping restricted to some tensors; unknown names are ignored, and memory is shared."""
    if isinstance(tensors, LazyTensors | Packed):
        return tensors.some(names)
    return {name: tensors[name] for name in names if name in tensors}


def copy_all(names: list[str], source: StateDict, target: StateDict) -> None:
    """Copy some tensors, run by run."""
    for run in joined(names, [source, target], dict.fromkeys(names)):
        if isinstance(target, Packed):
            spanned(target, run).copy_(spanned(source, run))
        else:
            target[run[0]].copy_(source[run[0]])


def stack_deltas(name: str, base: Tensor, experts: Mapping[str, Tensor]) -> Deltas:
    """Task vectors θ_t − θ₀ of one tensor, stacked over experts: [T, *shape].

    Raises:
        InputError: an expert's tensor of another shape or dtype, or with NaN or Inf.
    """
    dtype = accumulator(base.dtype, *(expert.dtype for expert in experts.values()))
    origin = base.detach().to(dtype)
    deltas = torch.empty((len(experts), *base.shape), dtype=dtype, device=base.device)
    for row, (task, expert) in zip(deltas, experts.items(), strict=True):
        if expert.shape != base.shape:
            raise InputError(
                f"expert {task!r}: tensor {name!r}: shape {list(expert.shape)};"
                f" the base has {list(base.shape)}"
            )
        if not expert.is_floating_point():
            raise InputError(
                f"expert {task!r}: tensor {name!r}: dtype {expert.dtype}; the base has {base.dtype}"
            )
        check_finite(expert, name, f"expert {task!r}")
        torch.sub(expert.detach().to(device=base.device, dtype=dtype), origin, out=row)
    return deltas


def check_names(base: StateDict, expert: StateDict, task: str) -> None:
    """Raise InputError if an expert's tensor names differ from the base's."""
    missing = [name for name in base if name not in expert]
    extra = [name for name in expert if name not in base]
    for what, names in (("missing", missing), ("not in the base", extra)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"expert {task!r}: tensor {names[0]!r}{more}: {what}")


def check_finite(tensor: Tensor, name: str, owner: str) -> None:
    """Raise InputError if a floating-point tensor has NaN or Inf; the message says how many."""
    # One pass and no temporary: the sum is NaN or Inf where an element is; a finite tensor whose
    # sum overflows is looked at again element by element.
    if tensor.is_floating_point() and not bool(tensor.sum(dtype=torch.float32).isfinite()):
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise InputError(f"{owner}: tensor {name!r}: {bad} of {tensor.numel()} are NaN or Inf")


def check_equal(base: Tensor, expert: Tensor, name: str, task: str) -> None:
    """Raise InputError if an integer or bool buffer differs from the base's."""
    if base.dtype != expert.dtype or not torch.equal(base, expert.to(base.device)):
        raise InputError(
            f"expert {task!r}: tensor {name!r}: a {base.dtype} buffer that differs from the base's;"
            " only floating-point tensors can be fused"
        )


def block_of(name: str) -> str:
    """Block of a tensor (transformer layer, residual block): its name up to the first number.

    Empty for tensors outside numbered modules, such as embeddings and final norms.

    >>> block_of("encoder.layers.3.mlp.fc1.weight"), block_of("pre_layrnorm.weight")
    ('encoder.layers.3', '')
    """
    found = BLOCK.match(name)
    return found.group(1) if found else ""


def is_batch_statistic(name: str) -> bool:
    """Whether a tensor's name is that of a batch-norm buffer, which is no weight."""
    return name.rpartition(".")[2] in STATISTICS
