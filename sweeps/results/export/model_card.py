"""The model card of an export: `README.md` with the hub's metadata, and code for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from actors.checkpoints.sources import HUB_ID
from actors.families.usage import code_of
from actors.files.documents import dump_yaml
from actors.pool.pool import Pool
from fusion.registry import METHODS

CARD = "OUT_DIR"
"""In place of the folder in the command that a card names."""

MADE_WITH = ("fusion-sweeps", "transformers", "torch", "datasets")


@dataclass(frozen=True)
class Card:
    """What a model card says."""

    method: str
    params: Mapping[str, Any]
    base: tuple[str, str]
    """Source and content hash."""
    experts: Mapping[str, tuple[str, str]]
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Content of `tasks.json`."""
    command: str = ""
    """What made the folder."""
    sweep: str | None = None
    """What made the sweep."""
    dtype: str = "float32"
    """What accuracies were measured in."""


def write_card(part: Path, pool: Pool, card: Card) -> None:
    """Write `README.md` into a folder."""
    usage = pool.family.usage(pool.base)
    example = smallest(card.tasks)
    code = "" if usage is None or example is None else code_of(usage, example, card.dtype)
    pipeline = None if usage is None else usage.pipeline
    sections = [
        f"---\n{metadata(card, pipeline)}\n{LICENCE}---",
        f"# {card.method} of {', '.join(card.experts)}",
        f"A merged model: {len(card.experts)} models that were fine-tuned from one base, fused by"
        f" `{card.method}`{paper(card.method)}.",
        ingredients(card),
        results(card.tasks),
        using(code, example, card.tasks),
        made(card),
    ]
    text = "\n\n".join(section for section in sections if section)
    (part / "README.md").write_text(text + "\n", encoding="utf-8")


LICENCE = (
    "# license: to be chosen by you; those of the base, of the experts and of their data apply\n"
)


def metadata(card: Card, pipeline: str | None) -> str:
    """The front matter, as the hub reads it."""
    sources = [source for source, _ in (card.base, *card.experts.values())]
    datasets = dict.fromkeys(str(each["dataset"]) for each in card.tasks.values())
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["merge", "model-merging", "fusion-sweeps", card.method],
        base_model=list(dict.fromkeys(filter(on_hub, sources))) or None,
        base_model_relation="merge",
        datasets=[name.partition(":")[0] for name in datasets if on_hub(name)] or None,
        metrics=["accuracy"] if card.tasks else None,
        model_name=f"{card.method} of {', '.join(card.experts)}",
        eval_results=evaluations(card.tasks, pipeline) or None,
    )
    return str(data.to_yaml()).strip()


def evaluations(tasks: Mapping[str, Mapping[str, Any]], pipeline: str | None) -> list[EvalResult]:
    """Accuracies as the hub's `model-index`."""
    return [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=str(each["dataset"]) if on_hub(str(each["dataset"])) else name,
            dataset_name=name,
            dataset_split=str(each["split"]),
            metric_type="accuracy",
            metric_value=each["accuracy"],
        )
        for name, each in tasks.items()
        if each["accuracy"] is not None
    ]


def on_hub(source: str) -> bool:
    """Whether a source is a hub's id: `org/name`, and no folder here."""
    name = source.partition("@")[0].partition(":")[0]
    return "/" in name and bool(HUB_ID.fullmatch(name)) and not Path(source).exists()


def paper(method: str) -> str:
    """Where a method is from."""
    row = METHODS.get(method)
    return f" ({row.paper})" if row is not None and row.paper else ""


def ingredients(card: Card) -> str:
    """Base, experts, method and parameters."""
    models = {"base": card.base, **card.experts}
    lines = [f"| {name} | `{source}` | `{sha[:12]}` |" for name, (source, sha) in models.items()]
    given = dump_yaml({card.method: dict(card.params)}).strip()
    return "\n".join(
        [
            "## Ingredients", "", "| | source | sha256 |", "|---|---|---|", *lines, "",
            "Method and parameters:", "", "```yaml", given, "```",
        ]
    )  # fmt: skip


def results(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Data, splits and accuracies of the tasks."""
    if not tasks:
        return ""
    lines = [
        f"| {name} | `{each['dataset']}` | {each['split']} | {each['n']:,} |"
        f" {len(each['classnames'])} | {percent(each['accuracy'])} |"
        f" {span(each['accuracy_ci95'])} |"
        for name, each in tasks.items()
    ]
    return "\n".join(
        [
            "## Accuracy", "", "In %, with 95 % intervals. Nothing was learned from these rows, and"
            " nothing was chosen by them, unless the sweep's report says so.", "",
            "| task | data | split | rows | classes | accuracy | 95 % |",
            "|---|---|---|---|---|---|---|", *lines,
        ]
    )  # fmt: skip


def percent(value: float | None) -> str:
    """0.6553 -> 65.5."""
    return "" if value is None else f"{100 * value:.1f}"


def span(interval: Any) -> str:
    """A 95 % interval in %; empty if the score has no interval."""
    return "" if not interval else f"{percent(interval[0])}–{percent(interval[1])}"


def using(code: str, example: str | None, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The code, what it prints, and where the files are."""
    if not code or example is None:
        return ""
    value = tasks[example]["accuracy"]
    printed = "" if value is None else f" It prints {value!r}."
    return (
        f"## Use\n\nRun in this folder; it loads the model and measures `{example}`.{printed}"
        f" `tasks.json` has the other tasks, with class names and words.\n\n```python\n{code}```"
        "\n\nThe number is equal where rows are prepared alike: images by the Pillow backend of"
        " the image processor, texts by the folder's tokenizer, both cut as `tasks.json` says."
    )


def made(card: Card) -> str:
    """Commands and versions."""
    commands = [line for line in (card.sweep, card.command) if line]
    versions = ", ".join(f"{name} {version(name)}" for name in MADE_WITH)
    listed = "\n".join(f"    {line}" for line in commands)
    return f"## How it was made\n\n{listed}\n\nWith {versions}. `recipe.yaml` has the hashes."


def smallest(tasks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The task with the fewest rows; the first of equal ones."""
    return min(tasks, key=lambda name: int(tasks[name]["n"]), default=None)
