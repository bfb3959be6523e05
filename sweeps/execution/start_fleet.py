"""Start the fleet: prepare the data, load the experts, wait until the replicas are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from actors.data.task import Role
from actors.data.task_rows import TaskData
from actors.experts.model_runner import Precisions
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.fleet.fleet import Fleet, FleetOptions
from actors.gate_features.extractor import Extractor
from sweeps.console.progress import Progress
from sweeps.execution.site import Site
from sweeps.planning.prepared import Prepared

PREPARING, LOADING = "preparing the data", "reading base and experts"
"""What the display says while rows and heads are made, and while replicas get their models."""


def start_fleet(
    stack: ExitStack,
    site: Site,
    prepared: Prepared,
    progress: Progress,
    roles: Iterable[Role],
    more: Callable[[Mapping[str, TaskData]], Mapping[str, TaskData]] = lambda data: data,
    extractors: Sequence[Extractor] = (),
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[Fleet, Mapping[str, TaskData]]:
    """Prepare the data, load the experts and wait until the replicas are ready.

    Args:
        stack: closes everything at its end.
        site: the connected cluster or this machine.
        prepared: the result of `prepare`.
        progress: shows the rows prepared.
        roles: roles whose rows are decoded.
        more: may add roles to tasks, before the replicas start.
        extractors: extractors whose features of every row are computed.
        meanwhile: called while the replicas load.

    Raises:
        InputError: a row that cannot be read, or a refused weight, each by name.
    """
    with progress.doing(PREPARING):
        data = more(
            prepare_data(
                prepared.pool.base,
                prepared.tasks,
                prepared.splits,
                roles,
                cache_dir(),
                select_spelled=prepared.spec.splits.select_spelled,
                extractors=list(extractors),
                progress=partial(progress.set, f"{prepared.inputs.kind}s"),
                device=prepared.plan.device,
                unseen=prepared.spec.unseen,
            )
        )
    placement = prepared.spec.placement
    with progress.doing(LOADING):
        fleet = stack.enter_context(
            Fleet(
                prepared.pool,
                data,
                prepared.embeddings(),
                prepared.plan,
                FleetOptions(
                    dtype=placement.dtype,
                    transport=placement.transport,
                    weights=placement.weights,
                    results=placement.result_dtype,
                    precisions=Precisions(placement.precision, placement.report_precision),
                    batch_norm=prepared.spec.batch_norm,
                    readers=site.readers(prepared),
                    sweep=prepared.spec.name,
                ),
            )
        )
        meanwhile()
        fleet.ready()
    stack.enter_context(site.elastic(fleet, prepared))
    return fleet, data
