"""Placement of replicas, and the error of replicas for which the cluster has no room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from fusion.errors import InputError


class Unplaced(InputError):
    """The cluster has no room for a replica: one line with what is needed and what is there."""


def placed(group: PlacementGroup) -> bool:
    """Whether all bundles of a placement group have been placed."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def shortage(groups: Sequence[PlacementGroup]) -> str:
    """What these placement groups need, and what is there, in one line."""
    different = {group.id: group for group in groups}.values()
    lost = [group for group in different if not placed(group)]
    specs: list[Mapping[str, float]] = [spec for group in lost for spec in group.bundle_specs]
    each = " and ".join(f"{amount:g} {kind}" for kind, amount in specs[0].items()) if specs else ""
    there, free = (
        ", ".join(f"{found.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
        for found in (ray.cluster_resources(), ray.available_resources())
    )
    return (
        f"fleet: no place for {len(lost)} of {len(different)} replicas: {len(specs)} shards need"
        f" {each} each; the cluster has {there} in all, {free} free"
    )
