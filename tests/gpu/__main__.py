"""The acceptance on one GPU, in at most eight minutes: `make gpu`, or `python -m tests.gpu`.

    python -m tests.gpu [--device cuda | pretend | cpu] [--parts machine methods …] [--size b32]
                        [--pool FOLDER] [--out FOLDER]

Every row is written as it comes, so that a run that is cut leaves what it has found: with a GPU in
`benchmarks/results/gpu_<date>.md`, and lines of JSON beside it; without one in `outputs/gpu/`, in
files that say so. The exit code is 1 where a row is wrong.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ORDER = ("machine", "methods", "product", "layers", "speed", "memory", "laws")
"""Parts as they are run: what matters most comes first, for time may run out."""
SIZES = ("b32", "embedded", "tiny")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "pretend", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="*", choices=ORDER, default=ORDER)
    parser.add_argument("--size", choices=SIZES, help="of speed and memory; on a GPU b32")
    parser.add_argument("--pool", type=Path, help="a tiny pool that is there already")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=480, help="most seconds in all")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    return parser.parse_args()


def main() -> int:
    """Run the parts; 1 where a row is wrong."""
    given = arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.device == "pretend":
        from tests.pretend import building

        building.load()  # before PyTorch is imported
        from tests.pretend import device

        device.install()
    import torch
    from transformers.utils.logging import disable_progress_bar

    from tests.gpu.parts import chosen
    from tests.gpu.places import Place
    from tests.gpu.report import Report, results_file

    disable_progress_bar()
    if given.threads:
        torch.set_num_threads(given.threads)
    place = Place(given.device)
    size = given.size or ("b32" if given.device == "cuda" else "embedded")
    file = results_file(place, str(datetime.now(UTC).date()), given.out)
    report = Report(file, place, f"python -m tests.gpu {shlex.join(sys.argv[1:])}", given.seconds)
    with tempfile.TemporaryDirectory(prefix="fusion-sweeps-gpu-") as root, place.active():
        os.environ["FUSION_SWEEPS_CACHE"] = str(Path(root) / "cache")
        parts = chosen(place, Path(root), size, given.pool)
        for name in ORDER:
            if name in given.parts:
                report.run(parts[name])
    report.end()
    sys.stdout.write(f"\n{file}\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
