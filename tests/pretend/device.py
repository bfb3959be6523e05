"""Tensors that say they are on `cuda:0`, and whose values are real and on the CPU.

What the product does on a GPU runs with them line by line, its branches for GPUs too, and gives
numbers to compare with the CPU's. Every operation passes `carried_out`, which refuses what CUDA
refuses (operands on two devices, and the like) and notes where the host waits for the device.

There are no CUDA kernels: rounding is the CPU's, no memory is a GPU's, nothing is asynchronous.
Random numbers are refused there altogether, for CUDA's are not the CPU's.

Within `shapes_only` tensors have no values (they are on the meta device), so that models of real
sizes can be counted in seconds. What the host reads there is 1, or True.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CUDA, CPU, META = torch.device("cuda:0"), torch.device("cpu"), torch.device("meta")
ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / part) for part in ("fusion", "actors", "sweeps"))

MOVES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}
"""Operations between devices."""

PICKS = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
"""Indexing: a CUDA tensor takes indices that are on the CPU, not the other way round."""

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero",
    "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "histc",
    "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "_linalg_check_errors",
    "multinomial",
}  # fmt: skip
"""Operations after which CUDA makes the host wait: results of unknown size, checks of errors."""


NO_KERNEL = ("empty", "new_empty", "resize_", "detach", "_local_scalar_dense")
"""Beginnings of the names of operations that start no kernel: allocations, and reads of a number,
which are counted as waits."""

READS = {"mv", "addmv", "dot", "vdot"}
"""Products that `torch.utils.flop_counter` does not know: two FLOPs for each entry read."""


class Mixed(RuntimeError):
    """What CUDA would refuse."""


class OnGpu(Tensor):
    """A tensor on the pretended device; `real` holds its values."""

    __slots__ = ("held", "real")
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: Tensor) -> OnGpu:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, device=CUDA, requires_grad=False,
        )  # fmt: skip

    def __init__(self, real: Tensor) -> None:
        self.real = real
        self.held = memory_of(real)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.real!r})"


class Noted:
    """What has been seen since `clear`."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """`file:line what` -> how often the host would have waited there."""
        self.launches = 0
        """Operations on the device that are no views."""
        self.sent = 0
        """Bytes from the host to the device."""
        self.moved = 0
        """Bytes that these operations read and write."""
        self.flops = 0
        """FLOPs of matrix products, convolutions and attention."""
        self.live = self.peak = 0
        """Bytes of memory on the device now, and at most since `clear`."""

    def clear(self) -> None:
        """Forget all of it."""
        self.waits.clear()
        self.launches = self.sent = self.moved = self.flops = 0
        self.peak = self.live

    def kernel(self, moved: int, flops: int = 0) -> None:
        """An operation on the device."""
        self.launches += 1
        self.moved += moved
        self.flops += flops

    def wait(self, what: str) -> None:
        """The host waits."""
        self.waits[f"{place()} {what}"] += 1

    @property
    def syncs(self) -> int:
        """How often the host would have waited."""
        return self.waits.total()


NOTED = Noted()


class Memory:
    """One block of the device's memory, for as long as a tensor on it lives."""

    def __init__(self, size: int) -> None:
        self.size = size
        NOTED.live += size
        NOTED.peak = max(NOTED.peak, NOTED.live)

    def __del__(self) -> None:
        NOTED.live -= self.size


MEMORY: WeakValueDictionary[int, Memory] = WeakValueDictionary()
"""Address of a storage -> its block."""


PINNED: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
"""Address of memory that was asked for as pinned -> the tensor it was made for."""


def memory_of(tensor: Tensor) -> Memory:
    """The block of a tensor's storage; views share it."""
    storage = tensor.untyped_storage()
    found = MEMORY.get(storage._cdata)
    if found is None:
        MEMORY[storage._cdata] = found = Memory(storage.nbytes())
    return found


def touched(tensor: Tensor) -> int:
    """Bytes of a tensor's entries; an axis that is only expanded counts once."""
    axes = zip(tensor.shape, tensor.stride(), strict=True)
    numel = math.prod(size if stride or not size else 1 for size, stride in axes)
    return numel * tensor.element_size()


def place() -> str:
    """`file:line` of the innermost frame of the product."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def refuse(what: str) -> None:
    """Raise what CUDA would."""
    raise Mixed(f"{what}, at {place()}")


def on_gpu(tensor: Tensor) -> OnGpu:
    """A CPU tensor as one on the pretended device; they share memory."""
    return tensor if isinstance(tensor, OnGpu) else OnGpu(tensor.detach())


def on_host(value: Any) -> Any:
    """The values of a tensor, wherever it is; anything else as it is."""
    return value.real if isinstance(value, OnGpu) else value


def flattened(values: Any) -> Iterator[Any]:
    """What arguments hold, lists and dicts opened."""
    for each in values.values() if isinstance(values, dict) else values:
        if isinstance(each, list | tuple | dict):
            yield from flattened(each)
        else:
            yield each


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with every leaf changed."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(change, each) for each in value)
    if isinstance(value, dict):
        return {key: mapped(change, each) for key, each in value.items()}
    return change(value)


def carried_out(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """One operation: checked, noted, done on the CPU, and its results where they would be."""
    name = func.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return 0  # attention written out: its fused kernels are CUDA's own
    tensors = [each for each in flattened((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, OnGpu)]
    here = [each for each in tensors if not isinstance(each, OnGpu)]
    asked = kwargs.get("device")
    goes = bool(there) if asked is None else torch.device(asked).type == "cuda"
    if name == "copy_":
        goes = isinstance(args[0], OnGpu)
    check(func, name, args, there, here, goes)
    note(name, args, kwargs, there, here)
    found = computed(func, name, args, kwargs, goes)
    if (there or goes) and not func.is_view and not name.startswith(NO_KERNEL):
        NOTED.kernel(*work(func, args, kwargs, tensors, found))
    if not goes:
        return found
    known = {id(each.real): each for each in there} | {id(each): each for each in here}

    def placed(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return known[id(each)] if id(each) in known else OnGpu(each)

    return mapped(placed, found)


def computed(
    func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], goes: bool
) -> Any:
    """The operation's results, on the CPU; without values within `shapes_only`."""
    options = mapped(on_host, dict(kwargs))
    if options.get("pin_memory") is False:
        del options["pin_memory"]
    inner = mapped(on_host, args)
    shapes = any(  # not the product's own tensors on the meta device
        isinstance(each, OnGpu) and each.real.device == META for each in flattened((args, kwargs))
    )
    if shapes and not goes:
        return read(name, inner, options)
    if options.get("device") is not None and goes:
        options["device"] = META if shapes or SHAPES else CPU
    if shapes and goes:
        inner, options = mapped(without_values, inner), mapped(without_values, options)
    if shapes and name == "_local_scalar_dense":
        return read(name, inner, options)
    if shapes and name == "equal":
        return False
    return func(*inner, **options)


def read(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What the host reads of a tensor without values: ones."""
    if name == "copy_":
        return args[0].fill_(1)
    dtype = options.get("dtype") or args[0].dtype
    ones = torch.ones(args[0].shape, dtype=dtype)
    return ones.item() if name == "_local_scalar_dense" else ones


def without_values(value: Any) -> Any:
    """A tensor on the meta device; anything else as it is."""
    return value.to(META) if isinstance(value, Tensor) else value


def work(
    func: Any, args: Any, kwargs: Mapping[str, Any], given: list[Tensor], found: Any
) -> tuple[int, int]:
    """Bytes that an operation moves, and its FLOPs."""
    made = [each for each in flattened([found]) if isinstance(each, Tensor)]
    name, inputs = func.overloadpacket.__name__, [on_host(each) for each in given]
    fresh = [each for each in made if not any(each is one for one in inputs)]
    moved = sum(touched(each) for each in fresh)
    if not name.startswith(("zero", "fill_", "ones", "full")):
        moved += sum(touched(each) for each in inputs)
    if func._schema.is_mutable and inputs and name not in ("copy_", "zero_", "fill_"):
        moved += touched(inputs[0])  # written, beside being read
    if func.overloadpacket in flop_registry:
        return moved, flop_registry[func.overloadpacket](*args, **kwargs, out_val=found)
    return moved, 2 * max(each.numel() for each in inputs) if name in READS else 0


def check(
    func: Any, name: str, args: Any, there: list[OnGpu], here: list[Tensor], goes: bool
) -> None:
    """Raise Mixed where CUDA would refuse an operation."""
    if goes and torch.Tag.nondeterministic_seeded in func.tags:
        refuse(f"{name}: random numbers of the device's own")
    if name in MOVES or not (there and here):
        return
    if name in PICKS:
        check_pick(name, args, here)
        return
    shaped = [tuple(each.shape) for each in here if each.dim()]
    if shaped or torch.Tag.pointwise not in func.tags:
        refuse(f"{name}: operands on cuda:0 and cpu {shaped}")
    if func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], OnGpu):
        refuse(f"{name}: a CPU tensor written to with an operand on cuda:0")


def check_pick(name: str, args: Any, here: list[Tensor]) -> None:
    """Raise Mixed where indices are on the device and the tensor is not, or values are not."""
    if not isinstance(args[0], OnGpu):
        refuse(f"{name}: an index on cuda:0 of a CPU tensor")
    values = args[2] if len(args) > 2 else None
    if any(each is values and each.dim() for each in here):
        refuse(f"{name}: values on the CPU put into a tensor on cuda:0")


def note(
    name: str, args: Any, kwargs: Mapping[str, Any], there: list[OnGpu], here: list[Tensor]
) -> None:
    """Count bytes sent and waits."""
    crossing = crosses(name, args, kwargs)
    if crossing:
        if crossing == "to the device":
            NOTED.sent += sum(each.nbytes for each in here[-1:])
        asked = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        pinned = all(each.untyped_storage().data_ptr() in PINNED for each in here)
        if not (asked and pinned):
            NOTED.wait(f"copy {crossing}")
    if not there:
        return
    if name in WAITS:
        NOTED.wait(name)
    if name in PICKS:
        indices = [each for each in args[1] or () if isinstance(each, Tensor)]
        if any(not isinstance(each, OnGpu) for each in indices):
            NOTED.wait(f"{name} by an index on the CPU")
        single = name.startswith(("index_put", "_index_put")) and args[2].numel() == 1
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices) and not single:
            NOTED.wait(f"{name} by a mask")


def crosses(name: str, args: Any, kwargs: Mapping[str, Any]) -> str:
    """Which way an operation copies between devices; empty: it does not."""
    if name == "_to_copy" and kwargs.get("device") is not None:
        was, will = isinstance(args[0], OnGpu), torch.device(kwargs["device"]).type == "cuda"
    elif name == "copy_":
        was, will = isinstance(args[1], OnGpu), isinstance(args[0], OnGpu)
    else:
        return ""
    return "" if was == will else "to the device" if will else "to the host"


class Pretending(TorchDispatchMode):
    """Within it, tensors that are made on `cuda` are made on the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("pin_memory"):
            return unpinned(func)(*args, **kwargs)
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            return carried_out(func, args, kwargs)
        if any(isinstance(each, OnGpu) for each in flattened((args, kwargs))):
            return carried_out(func, args, kwargs)
        return func(*args, **kwargs)


class WithoutInference(torch.utils._contextlib._DecoratorContextManager):  # type: ignore[misc]
    """Inference mode by the gradient mode alone: a wrapper cannot be an inference tensor."""

    def __new__(cls, mode: Any = True) -> Any:
        return super().__new__(cls) if isinstance(mode, bool) else cls()(mode)

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(not self.mode)

    def __exit__(self, *_: object) -> None:
        torch.set_grad_enabled(self.before)

    def clone(self) -> WithoutInference:
        return type(self)(self.mode)


def guarded(plain: Callable[..., Any], there: Callable[[OnGpu], Any]) -> Callable[..., Any]:
    """A method of tensors that does something else with those on the pretended device."""

    def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return there(self) if isinstance(self, OnGpu) else plain(self, *args, **kwargs)

    return call


def listed(tensor: OnGpu) -> Any:
    """`tolist`: the host waits."""
    NOTED.wait("tolist")
    real = tensor.real
    return (read("tolist", (real,), {}) if real.device == META else real).tolist()


def install() -> None:
    """Make this process believe that it has one GPU; there is no way back.

    It computes on one thread: a mode is a thread's own, so what other threads made would be made on
    a real GPU.
    """
    torch.set_num_threads(1)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = WithoutInference  # type: ignore[misc, assignment]
    torch.Tensor.tolist = OnGpu.tolist = guarded(Tensor.tolist, listed)  # type: ignore[method-assign]
    refused = guarded(Tensor.numpy, lambda tensor: refuse("numpy() of a tensor on cuda:0"))
    torch.Tensor.numpy = OnGpu.numpy = refused  # type: ignore[method-assign]
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.get_device_name = lambda device=None: "a pretended GPU"
    cuda.get_device_properties = lambda device=None: H200
    cuda.mem_get_info = lambda device=None: (75 * 10**9, 80 * 10**9)
    cuda.synchronize = lambda device=None: None
    cuda.reset_peak_memory_stats = lambda device=None: setattr(NOTED, "peak", NOTED.live)
    cuda.max_memory_allocated = lambda device=None: NOTED.peak
    cuda.memory_allocated = lambda device=None: NOTED.live
    cuda.PRETENDED = True


def everywhere() -> torch.library.Library:
    """After `install`: `cuda` is the pretended device in all threads, not only within `pretending`.

    For whole programs, whose threads no one can give a mode. The kernels of allocations are
    registered; as long as the result lives.
    """
    kernels = torch.library.Library("aten", "IMPL", "CUDA")
    for func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
        kernels.impl(func, partial(allocated, func))
    torch.tensor = sent(torch.tensor)
    torch.as_tensor = sent(torch.as_tensor)
    torch.empty = unpinned(torch.empty)
    return kernels


def allocated(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The kernel of an allocation."""
    return carried_out(func, args, kwargs)


def sent(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes a tensor of numbers: on the CPU first, then where it is wanted."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(*args, device=device, **kwargs)
        return make(*args, device="cpu", **kwargs).to(device)

    return made


def unpinned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An allocation whose pinned memory is noted as such, and is the CPU's."""

    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        found = make(*args, **kwargs)
        if pin_memory:
            PINNED[found.untyped_storage().data_ptr()] = found
        return found

    return made


H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=141 * 10**9,
    clock_rate=1_830_000, memory_clock_rate=3_125_000, memory_bus_width=6144,
)  # fmt: skip
"""Properties of the pretended device."""

SHAPES: list[None] = []
"""Not empty: new tensors have no values."""


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within it and `pretending`, new tensors on the device have no values."""
    SHAPES.append(None)
    try:
        yield
    finally:
        SHAPES.pop()


@contextlib.contextmanager
def pretending() -> Iterator[Noted]:
    """Within it `cuda` is the pretended device; what was seen is counted from here."""
    NOTED.clear()
    with Pretending():
        yield NOTED
