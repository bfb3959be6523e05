"""`make bench`: every benchmark, each in a process of its own, results kept under results/.

`memory_l14` is left out: it needs 12 GB of disk and half an hour.
"""

import subprocess
import sys

MODULES = (
    "fusion.merging", "fusion.peers", "fusion.ties", "sweeps.sweep", "fusion.layers",
    "actors.gates", "actors.pipeline", "actors.dawin", "actors.scale", "fusion.exact_alpha",
    "fusion.tip_search", "actors.soup", "actors.learned_soup", "actors.greedy",
    "actors.landscape", "actors.informed", "fusion.spectral", "actors.resident", "actors.lora",
    "counts", "text.speed", "sweeps.start_up", "sweeps.precision", "sweeps.racing",
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
