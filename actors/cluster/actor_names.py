"""Names of a sweep's actors and tasks in Ray's dashboard, in logs, and as tags of metrics."""

from __future__ import annotations

import re

ACTOR = re.compile(
    r"sweep:(?P<sweep>.+)/(?:replica (?P<replica>\d+)(?: shard (?P<shard>\d+))?|\w+)"
)


def actor_name(
    sweep: str, replica: int | None = None, shard: int | None = None, *, what: str = "desk"
) -> str:
    """The name of an actor. Ray refuses a name that another actor of the same driver still has.

    Args:
        sweep: the sweep's name.
        replica: number of the replica; None: an actor that the sweep has only once, `what`.
        shard: number of the shard in the replica; None: the replica itself, or its coordinator.
        what: `desk` (the dispatcher), `keeper` (the artifact store): one word.

    >>> actor_name("ta8", 0, 1), actor_name("ta8", 0), actor_name("ta8")
    ('sweep:ta8/replica 0 shard 1', 'sweep:ta8/replica 0', 'sweep:ta8/desk')
    """
    if replica is None:
        return f"sweep:{sweep}/{what}"
    return f"sweep:{sweep}/replica {replica}" + ("" if shard is None else f" shard {shard}")


def tags_of(name: str) -> dict[str, str]:
    """Metric tags parsed from an actor's name; missing parts are left out.

    >>> tags_of("sweep:ta8/replica 0 shard 1")
    {'sweep': 'ta8', 'replica': '0', 'shard': '1'}
    >>> tags_of("sweep:ta8/desk"), tags_of("a worker")
    ({'sweep': 'ta8'}, {})
    """
    found = ACTOR.fullmatch(name)
    return {k: v for k, v in found.groupdict().items() if v is not None} if found else {}
