"""What entropies say of accuracy in a pool: the premise of AdaMerging, DAWE and DaWin.

    python -m benchmarks.sweeps.entropies SPEC [--save NAME]

For each task of a sweep file: entropy (nats) and accuracy (%) on the select split of task
arithmetic at several λ, of the task's own expert, and of points between and beyond. Where the
expert's entropy is far below that of every merge, minimising it leads to the expert.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from actors.data.task import Role, Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prediction.predict import classified
from actors.experts.prepare_data import prepare_data
from actors.files.cache_dir import cache_dir
from actors.pool.pool import open_pool
from benchmarks.environment import RESULTS, machine
from fusion.logits.entropy import entropy
from sweeps.spec.sweep import load

ROLE: Role = "select"


def codings(tasks: int, own: int) -> dict[str, Tensor]:
    """Name -> coding [1, T, 1] for the task whose expert is `own`."""
    ones = torch.ones(1, tasks, 1)
    expert = torch.nn.functional.one_hot(torch.tensor(own), tasks).float().view(1, tasks, 1)
    found = {f"λ = {scale}": scale * ones for scale in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)}
    found |= {f"{scale} × own expert": scale * expert for scale in (0.5, 1.0, 1.5)}
    return found | {"own expert − 0.3 × the others": 1.3 * expert - 0.3 * ones}


def measured(experts: LocalExperts, task: str, coding: Tensor) -> tuple[float, float]:
    """(mean entropy, accuracy) of one task's select rows."""
    weights = experts.runner.pipeline.weights(coding=coding)
    z = classified(experts.runner, weights, task, ROLE).logits
    hits = z.argmax(1) == experts.runner.labels(task, ROLE)
    return entropy(z).mean().item(), hits.float().mean().item()


def main() -> None:
    """Print a Markdown table; with `--save NAME` keep it under results/."""
    spec = load(sys.argv[1])
    pool = open_pool(spec.pool.base, spec.pool.experts)
    tasks = {
        name: open_task(TaskSource(name, t.dataset, t.image, t.label, t.templates, t.classnames))
        for name, t in spec.tasks.items()
        if name in pool.tasks
    }
    splits = Splits(**spec.splits.model_dump())
    data = prepare_data(pool.base, tasks, splits, [ROLE], cache_dir())
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        experts = local_experts(pool, data, EmbeddingCache(Path(scratch), {}))
        for task in tasks:
            for name, coding in codings(len(pool.tasks), pool.tasks.index(task)).items():
                rows.setdefault(name, []).append(measured(experts, task, coding))
    lines = [
        f"# Entropies and accuracies: {spec.name}",
        "",
        f"`python -m benchmarks.sweeps.entropies SPEC`, {datetime.now(UTC).date()}: {machine()}.",
        "Each cell: mean entropy in nats / accuracy in %, on the select split.",
        "",
        "| model | " + " | ".join(tasks) + " | sum of entropies | mean accuracy |",
        "|---" * (len(tasks) + 3) + "|",
    ]
    for name, found in rows.items():
        cells = [f"{nats:.2f} / {100 * accuracy:.0f}" for nats, accuracy in found]
        total = sum(nats for nats, _ in found)
        mean = 100 * sum(accuracy for _, accuracy in found) / len(found)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {total:.2f} | {mean:.1f} |")
    text = "\n".join([*lines, ""])
    print(text)
    if "--save" in sys.argv:
        name = sys.argv[sys.argv.index("--save") + 1]
        (RESULTS / f"entropies_{name}_{datetime.now(UTC).date()}.md").write_text(text)


if __name__ == "__main__":
    main()
