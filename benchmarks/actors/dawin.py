"""DaWin with three clusters on the embedded pool: a merge a cluster, or one a batch and cluster.

    python -m benchmarks.actors.dawin [--save] [--device cuda] [--repeats 3]

Ours merges each cluster once and runs its rows (`LocalExperts.routed`). The textbook goes through
a task batch by batch, as the released code does: for each cluster of a batch it copies the model,
merges state dicts, loads the result and runs the cluster's rows. Both read the experts' cached
embeddings and fit the same mixtures; coefficients are then the same,
and accuracies must be. The floor is one forward pass of the rows with nothing merged.
"""

from __future__ import annotations

import copy
import math
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from actors.artifacts.recipe import BASE, Recipe
from actors.data.images.pixel_cache import open_pixels
from actors.data.task import Role
from actors.data.task_rows import batches
from actors.experts.local import LocalExperts, local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.clip.architecture import PROJECTION
from actors.files.cache_dir import cache_dir
from benchmarks.environment import Row, finish
from benchmarks.fusion.layers import arguments, medians
from fusion.logits.cosine_head import logits
from fusion.methods.routed.dawin import ExpertLogits, Routing, dawin
from fusion.task_vectors.task_vectors import TaskVectors
from sweeps.cli.quickstart import QUICKSTARTS, ensure_pool
from sweeps.cluster import ray_connection
from sweeps.planning.prepare import prepare
from sweeps.spec.sweep import load

CLUSTERS = 3
BATCH = 128
"""Images a batch of the textbook."""
RECIPE = Recipe("dawin", {"granularity": "cluster", "clusters": CLUSTERS})
METHODS = f"methods={{dawin: {{granularity: cluster, clusters: {CLUSTERS}}}}}"
TOLERANCE = 1e-3
"""Of accuracies: an image or two whose best classes are equal to rounding."""


class Textbook:
    """transformers' model, copied and loaded for each batch and cluster."""

    def __init__(self, ours: LocalExperts, base: Path, vectors: TaskVectors, role: str) -> None:
        from transformers import CLIPVisionModel

        self.ours, self.vectors, self.role, self.merges = ours, vectors, role, 0
        self.model = CLIPVisionModel.from_pretrained(base).eval().to(ours.runner.device)
        encoder = ours.runner.pipeline.shards[0].resident
        self.projection, self.preprocess = encoder.arena[PROJECTION], encoder.inputs.preprocess

    def loaded(self, coding: Tensor) -> torch.nn.Module:
        """A copy of the model with θ₀ + Σ_t c_t τ_t."""
        state = dict(self.vectors.base)
        for t, c in enumerate(coding.flatten().tolist()):
            state = {name: state[name] + c * self.vectors.deltas[name][t] for name in state}
        model: torch.nn.Module = copy.deepcopy(self.model)
        model.load_state_dict(state)
        self.merges += 1
        return model

    def routing(self, task: str) -> Routing:
        """Which of the task's rows go to which model."""
        ours, role = self.ours, self.role
        experts = torch.stack(
            [ours.runner.logits_of(each, task, role) for each in ours.runner.tasks]
        )
        expert_logits = ExpertLogits(
            ours.runner.tasks, experts, ours.runner.logits_of(BASE, task, role)
        )
        return dawin(expert_logits, granularity="cluster", clusters=CLUSTERS)

    def task(self, task: str) -> float:
        """Accuracy on one task."""
        ours, role, routing = self.ours, self.role, self.routing(task)
        labels, head = (
            ours.runner.labels(task, role),
            ours.runner.heads[task].to(ours.runner.device),
        )
        right = 0
        for part in batches(len(labels), BATCH):
            images = open_pixels(ours.runner.data[task].rows[role].file).images
            [(_, _, rows)] = ours.runner.batch(task, role, part).parts
            pixels = images[torch.from_numpy(rows)].to(ours.runner.device)
            for index in sorted(set(routing.assign[part].tolist())):
                chosen = torch.nonzero(routing.assign[part] == index).flatten()
                model = self.loaded(routing.codings[index])
                with torch.no_grad():
                    images_in = self.preprocess.normalise(pixels[chosen.to(ours.runner.device)])
                    z = logits(model(images_in).pooler_output @ self.projection.T, head)
                right += int((z.argmax(1).cpu() == labels[part][chosen]).sum())
        return right / len(labels)

    def evaluate(self) -> dict[str, float]:
        """Task -> accuracy."""
        self.merges = 0
        return {task: self.task(task) for task in self.ours.runner.data}


def accuracies(ours: LocalExperts, recipe: Recipe, role: str) -> dict[str, float]:
    """Task -> accuracy, by ours."""
    found = ours.evaluate(recipe, role)
    return {task: score.accuracy for task, score in found.scores.items()}


def run(device: str, repeats: int, role: Role) -> tuple[str, list[Row]]:
    """Rows evaluated, and all figures."""
    spec = load(QUICKSTARTS["images"], [METHODS, f"placement={{device: {device}}}"])
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(spec, Path(scratch), ray_connection.this_machine())
    pool = prepared.pool
    data = prepare_data(pool.base, prepared.tasks, prepared.splits, [role], cache_dir())
    ours = local_experts(pool, data, prepared.embeddings(), device=device)
    vectors = ours.runner.pipeline.shards[0].vectors
    theirs = Textbook(ours, pool.base.folder, vectors, role)
    wanted, found = theirs.evaluate(), accuracies(ours, RECIPE, role)  # fills the cache too
    worst = max(abs(found[task] - wanted[task]) for task in wanted)
    assert worst <= TOLERANCE, (found, wanted)
    seconds = medians(
        {
            "ours": lambda: accuracies(ours, RECIPE, role),
            "textbook": theirs.evaluate,
            "routing": lambda: [theirs.routing(task) for task in data],
            "floor": lambda: accuracies(ours, Recipe(BASE), role),
        },
        repeats,
        device,
    )
    one, loop, floor, routing = (seconds[name] for name in ("ours", "textbook", "floor", "routing"))
    images = sum(ours.runner.size(task, role) for task in data)
    model = sum(tensor.nbytes for tensor in vectors.base.values()) / 1e6
    merges = f"{theirs.merges} merges against at most {CLUSTERS * len(data)}"
    return f"{images} images of the {role} split, a model of {model:.3g} MB", [
        Row("textbook's time ÷ ours", loop / one, "", f"{loop:.3g} s ÷ {one:.3g} s; {merges}"),
        Row(
            "the same without routing",
            (loop - routing) / (one - routing) if one > routing else math.nan,
            "",
            f"less {routing:.3g} s of logits and mixtures on either side",
        ),
        Row(
            "ours without routing ÷ floor",
            (one - routing) / floor if one > routing else math.nan,
            "",
            f"floor: {floor:.3g} s, the same rows through the base",
        ),
        Row("accuracy, mean over tasks", sum(found.values()) / len(found), "", "ours"),
        Row("largest difference of a task's accuracy", worst, f"≤ {TOLERANCE:g}", ""),
    ]


def main() -> None:
    """Measure, print, and keep with `--save`."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the base has a text tower too
    parser = arguments(__doc__, 3)
    parser.add_argument("--role", default="report", choices=["select", "report"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ensure_pool("images", Console())
    images, rows = run(given.device, given.repeats, given.role)
    sizes = (
        f"embedded pool, 8 experts, {images}; K = {CLUSTERS}, batches of {BATCH} on {given.device};"
        f" medians of {given.repeats} in turns; {given.threads} threads"
    )
    finish("dawin", sizes, rows)


if __name__ == "__main__":
    main()
