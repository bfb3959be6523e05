"""A ten-value λ sweep on the embedded pool against a bare loop, and against reloading each time.

    python -m benchmarks.sweeps.sweep [--save]

All three evaluate the same ten merged models on the same rows, and must find the same accuracies.

* sweep: Tune trials over the fleet; timed from the first trial's start to the last one's end.
* bare loop: one process that already holds weights, images and heads; all cores.
* reloading loop: what a shell loop round a one-shot tool does: for each value, load nine models
  through transformers, encode the class names, decode and process every image, merge, evaluate.
"""

from __future__ import annotations

import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from actors.artifacts.recipe import Recipe
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.requests import Evaluate
from actors.files.cache_dir import cache_dir
from actors.fleet.fleet import Fleet
from actors.fleet.transport import fetched
from benchmarks.environment import Row, finish
from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool
from sweeps.cluster import ray_connection
from sweeps.console.progress import Progress
from sweeps.planning.prepare import prepare
from sweeps.planning.prepared import Prepared
from sweeps.results.folder import SweepFolder
from sweeps.results.ledger import Entry
from sweeps.spec.sweep import SweepSpec, load
from sweeps.spec.trial_key import trial_key
from sweeps.trials.run_trials import TrialSetup, tuned
from sweeps.trials.searcher import MethodSearch

SCALES = [round(0.1 * step, 1) for step in range(1, 11)]


def spec() -> SweepSpec:
    """The embedded pool, ten values of λ and nothing else."""
    return load(
        QUICKSTARTS["images"], [f"methods={{task_arithmetic: {{scale: {{grid: {SCALES}}}}}}}"]
    )


def tried(prepared: Prepared, folder: Path) -> tuple[float, list[Entry]]:
    """Run a sweep's trials on a fleet that is ready.

    Returns:
        Seconds from the first trial's start to the last one's end, and the entries.
    """
    entries: list[Entry] = []
    with ray_connection.connected(None, prepared.plan.store_bytes):
        data = prepare_data(
            prepared.pool.base, prepared.tasks, prepared.splits, ["select"], cache_dir()
        )
        with Fleet(prepared.pool, data, prepared.embeddings(), prepared.plan) as fleet:
            fleet.ready()
            # One evaluation a replica that is not counted, as the bare loop has one.
            warm = Recipe("task_arithmetic", {"scale": 0.05})
            for ref in [r.call.remote(Evaluate(warm, "select")) for r in fleet.replicas]:
                fetched(ref)
            search = MethodSearch(prepared.spec, prepared.context())
            setup = TrialSetup(
                prepared.spec,
                prepared.context(),
                fleet.client,
                SweepFolder(folder),
                Progress(Console(quiet=True)),
            )
            tuned(setup, search, entries.append)
    starts = [datetime.fromisoformat(entry.started) for entry in entries]
    ends = [datetime.fromisoformat(entry.ended) for entry in entries]
    return (max(ends) - min(starts)).total_seconds(), entries


def swept(prepared: Prepared, folder: Path) -> tuple[float, float, list[float], int]:
    """Seconds from first start to last end, seconds of evaluating, accuracies, replicas."""
    span, entries = tried(prepared, folder)
    order = {trial_key("task_arithmetic", {"scale": s}, prepared.context()): s for s in SCALES}
    found = sorted((order[entry.trial_key], entry.metrics["acc/mean"]) for entry in entries)
    busy = sum(entry.trial_s for entry in entries)
    return span, busy, [value for _, value in found], prepared.plan.replicas


def bare(prepared: Prepared) -> tuple[float, list[float]]:
    """Seconds of ten evaluations with everything in memory, and the accuracies."""
    with ray_connection.connected(None, prepared.plan.store_bytes):
        data = prepare_data(
            prepared.pool.base, prepared.tasks, prepared.splits, ["select"], cache_dir()
        )
    with tempfile.TemporaryDirectory() as scratch:
        experts = local_experts(prepared.pool, data, EmbeddingCache(Path(scratch), {}))
        experts.evaluate(Recipe("task_arithmetic", {"scale": 0.1}), "select")
        start = time.perf_counter()
        found = [
            experts.evaluate(Recipe("task_arithmetic", {"scale": s}), "select").metrics()
            for s in SCALES
        ]
        return time.perf_counter() - start, [metrics["acc/mean"] for metrics in found]


def reloading(prepared: Prepared, values: int = 2) -> tuple[float, list[float]]:
    """Seconds a value when everything is loaded and decoded again, and the accuracies."""
    start = time.perf_counter()
    found = [one_shot(prepared, scale) for scale in SCALES[:values]]
    return (time.perf_counter() - start) / values, found


def one_shot(prepared: Prepared, scale: float) -> float:
    """One value, from nothing, with transformers and datasets alone."""
    from datasets import load_dataset
    from transformers import CLIPModel, CLIPProcessor, CLIPVisionModel

    from actors.data.task import partition

    pool = prepared.pool
    model = CLIPModel.from_pretrained(pool.base.folder).eval()
    processor = CLIPProcessor.from_pretrained(pool.base.folder)
    base = {name: value.clone() for name, value in model.vision_model.state_dict().items()}
    total = {name: torch.zeros_like(value) for name, value in base.items()}
    for expert in pool.experts.values():
        tuned_state = CLIPVisionModel.from_pretrained(expert.folder).state_dict()
        for name in total:
            total[name] += tuned_state[name] - base[name]
    model.vision_model.load_state_dict({n: base[n] + scale * total[n] for n in base})
    accuracies = []
    for task in prepared.tasks.values():
        rows: Any = load_dataset("parquet", data_files=f"{task.dataset}/train.parquet")["train"]
        _, val = partition(rows.with_format("numpy")["label"][:], 0.1, 0)
        head = text_head(model, processor, task.classnames, task.templates)
        subset, right = rows.select(val), 0
        for at in range(0, len(subset), 128):
            batch = subset[at : at + 128]
            images = [image.convert("RGB") for image in batch["image"]]
            pixels = processor(images=images, return_tensors="pt").pixel_values
            with torch.no_grad():
                seen = model.visual_projection(model.vision_model(pixels).pooler_output)
                top = (torch.nn.functional.normalize(seen, dim=-1) @ head.T).argmax(1)
            right += int((top == torch.tensor(batch["label"])).sum())
        accuracies.append(right / len(subset))
    return sum(accuracies) / len(accuracies)


def text_head(model: Any, processor: Any, classnames: Any, templates: Any) -> torch.Tensor:
    """The zero-shot head, class by class, as one-shot tools build it."""
    rows = []
    for classname in classnames:
        text = processor(text=[t.format(classname) for t in templates], return_tensors="pt",
                         padding=True)  # fmt: skip
        with torch.no_grad():
            pooled = model.text_model(input_ids=text.input_ids).pooler_output
            each = torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)
        rows.append(torch.nn.functional.normalize(each.mean(0), dim=-1))
    return torch.stack(rows)


def main() -> None:
    """Run all three and print the ratios."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    ensure_pool("images", console)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(spec(), Path(scratch), ray_connection.this_machine())
        span, busy, ours, replicas = swept(prepared, Path(scratch) / "sweep")
    loop, theirs = bare(prepared)
    each, reloaded = reloading(prepared)
    assert ours == theirs, (ours, theirs)
    assert all(abs(a - b) < 2e-3 for a, b in zip(ours, reloaded, strict=False)), (ours, reloaded)
    finish(
        "sweep",
        f"{len(SCALES)} values of λ, {len(prepared.tasks)} tasks,"
        f" {prepared.role_rows['select']} images of the select split, {replicas} replicas",
        [
            Row("sweep ÷ bare loop", span / loop, "≤ 1.3", f"{span:.2f} s ÷ {loop:.2f} s"),
            Row(
                "added a trial beyond its evaluation",
                max(span - busy / replicas, 0) / len(SCALES),
                "≤ 0.3 s",
                f"({span:.2f} s − {busy:.2f} s ÷ {replicas} replicas) ÷ {len(SCALES)}",
            ),
            Row(
                "reloading loop ÷ sweep",
                each * len(SCALES) / span,
                "",
                f"{each:.2f} s a value, two values timed ÷ {span / len(SCALES):.2f} s a value",
            ),
        ],
    )


if __name__ == "__main__":
    main()
