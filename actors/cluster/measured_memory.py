"""Measured peak GPU memory, kept for the next plan: `cache/peaks/<hash of the load>.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from actors.cluster.partition import Load
from actors.files.atomic import replacing
from actors.files.checksums import sealed_json, unsealed_json
from actors.files.hashes import hash_text

LATER = ("work", "largest_block", "references")
"""Fields of a load that are left out where they say nothing: peaks of before them keep their
names."""


def peak_file(load: Load, root: Path) -> Path:
    """File with the peak memory of a load; its name changes with anything that changes the load."""
    facts = {k: v for k, v in asdict(load).items() if v or k not in LATER}
    text = json.dumps({**facts, "measured": 0}, sort_keys=True)
    return root / "peaks" / f"{hash_text('peaks-2', text)}.json"


def with_measured(load: Load, root: Path) -> Load:
    """The load with the peak memory that earlier sweeps measured, if any."""
    try:
        found = unsealed_json(peak_file(load, root).read_bytes())
        return replace(load, measured=int(found["bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return load


def keep_peak(load: Load, size: int, root: Path) -> None:
    """Store a peak if it is the largest so far.

    Args:
        load: the load that was placed, as whole replicas.
        size: largest number of bytes allocated on the GPU (`torch.cuda.max_memory_allocated`).
        root: the cache folder.
    """
    if size > with_measured(load, root).measured:
        with replacing(peak_file(load, root)) as part:
            part.write_text(sealed_json({"bytes": size}))
