"""Fields of a configuration, checked, and shapes of the tensors of common layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.files.documents import shown
from fusion.errors import InputError


def filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a default, as given or by default."""
    return {name: given.get(name, default) for name, default in defaults.items()}


def check_sizes(fields: Mapping[str, Any], largest: Mapping[str, int], file: str) -> None:
    """Raise InputError where a field is no whole number from 1 to its largest accepted value."""
    for name, most in largest.items():
        if type(fields[name]) is not int or not 1 <= fields[name] <= most:
            raise InputError(f"{file}: {name}: {shown(fields[name])}; 1 to {most:,}, whole, needed")


def check_fit(fields: Mapping[str, Any], file: str) -> None:
    """Raise InputError where fields contradict each other, or have a wrong type."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise InputError(f"{file}: hidden_size: {width}; a multiple of the {heads} heads needed")
    epsilon, act = fields["layer_norm_eps"], fields["hidden_act"]
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1:
        raise InputError(f"{file}: layer_norm_eps: {shown(epsilon)}; a number from 0 to 1 needed")
    if not isinstance(act, str):
        raise InputError(f"{file}: hidden_act: {shown(act)}; the name of an activation needed")


def linear(name: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a linear layer."""
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a layer norm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
