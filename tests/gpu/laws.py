"""The laws of `fusion.testing`, with all task vectors and embeddings on the device."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

from torch import Tensor

from fusion import testing
from fusion.registry import METHODS, LogitSpace, Static
from tests.fusion.laws import LAWS, LOGIT_LAWS  # noqa: F401 - it fills the examples
from tests.gpu.places import Place
from tests.gpu.report import Found, Part, Row

EVERYWHERE = {"unknown_parameter_names_the_nearest", "a_row_says_where_it_comes_from"}
"""Laws that no device touches."""


def kept(place: Place, name: str) -> Found:
    """Every law of one method, there."""
    fresh, embedded = testing.state_dict, testing.toy_embeddings

    def state_dict(schema: str, seed: int) -> dict[str, Tensor]:
        return place.moved(fresh(schema, seed))

    def embeddings(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        return tuple(each.to(place.device) for each in embedded(*args, **kwargs))

    laws = [law for law in testing.laws_of(METHODS[name]) if law.__name__ not in EVERYWHERE]
    broken = []
    with (
        patch.object(testing, "state_dict", state_dict),
        patch.object(testing, "toy_embeddings", embeddings),
    ):
        for law in laws:
            try:
                law(name)
            except AssertionError as error:
                broken.append(f"{law.__name__}: {' '.join(str(error).split())[:200]}")
    said = "; ".join(broken).replace("|", "/")
    return Found((f"{len(laws) - len(broken)} of {len(laws)}", "all", said), not broken)


def part(place: Place) -> Part:
    """The laws of methods that compute on a device."""

    def rows() -> Iterator[Row]:
        for name, method in METHODS.items():
            if isinstance(method, Static | LogitSpace):
                yield Row(name, lambda name=name: kept(place, name))

    columns = ("method", "laws kept", "must be", "broken")
    return Part("laws", columns, 60, rows)
