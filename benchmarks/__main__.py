"""`make bench`: every benchmark, each in a process of its own, results kept under results/.

`memory_l14` is left out: it needs 12 GB of disk and half an hour.
"""

import subprocess
import sys

MODULES = (
    "merging", "ties", "sweep", "layers", "gates", "pipeline", "dawin", "scale",
    "exact_alpha", "tip_search", "soup", "learned_soup", "greedy", "landscape",
    "informed", "spectral", "resident", "lora", "syncs",
)  # fmt: skip


def main() -> int:
    """Run all; the exit status is that of the worst."""
    worst = 0
    for name in MODULES:
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--save"], check=False)
        worst = max(worst, abs(done.returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main())
