"""What every row of the table of methods says of its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fusion.parameters import Parameter, bind, parameters


@dataclass(frozen=True)
class Row:
    """What every row of the table says of its rule."""

    rule: Callable[..., Any]
    paper: str
    defaults: str
    """Where the default hyper-parameters come from."""

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The hyper-parameters, as the rule's signature states them."""
        return parameters(self.rule, hidden=("survey",))

    @property
    def doc(self) -> str:
        """The rule's docstring."""
        return self.rule.__doc__ or ""

    def bound(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of a call: `params`, checked, over the defaults.

        Raises:
            InputError: unknown, missing or wrong parameters.
        """
        return bind(self.rule.__name__, self.parameters, params)


@dataclass(frozen=True)
class Learned(Row):
    """What a trial finds by looking at images, and keeps as a file of its own: a coding, a gate."""

    scope = "model"
