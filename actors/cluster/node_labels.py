"""Label selectors in Ray's syntax, which choose nodes by their labels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fusion.errors import InputError

NODE_ID = "ray.io/node-id"
"""The label that every node of a cluster carries."""

SELECTOR = re.compile(r"(!?)(?:in\(([^()]*)\)|([^!()]*))")


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels match a selector: `value`, `!value`, `in(a, b)` or `!in(a, b)` for each key.

    >>> matches({"zone": "a"}, {"zone": "in(a, b)"}), matches({"zone": "a"}, {"zone": "!a"})
    (True, False)
    """
    return all(wanted(labels.get(key), text, key) for key, text in selector.items())


def wanted(value: str | None, text: str, key: str) -> bool:
    """Whether the value of one label (None: missing) matches a selector's text.

    Raises:
        InputError: not a selector.
    """
    parsed = SELECTOR.fullmatch(text)
    if parsed is None:
        raise InputError(
            f"placement.labels.{key}: {text!r}; value, !value, in(a, b) or !in(a, b) allowed"
        )
    negated, several, one = parsed.groups()
    named = [name.strip() for name in several.split(",")] if several is not None else [one]
    return (value in named) is not bool(negated)


def selector(places: tuple[str, ...], labels: Mapping[str, str]) -> dict[str, str]:
    """Selector of a shard's bundle: the nodes it fits on, with the requested labels.

    Ray takes a blank in a list as part of the name, so there are none.

    >>> selector(("n1", "n2"), {"zone": "in(a, b)"})
    {'zone': 'in(a,b)', 'ray.io/node-id': 'in(n1,n2)'}
    """
    wanted = {key: text.replace(" ", "") for key, text in labels.items()}
    return {**wanted, **({NODE_ID: f"in({','.join(places)})"} if places else {})}
