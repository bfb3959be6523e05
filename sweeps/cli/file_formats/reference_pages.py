"""The pages docs/sweep_file.md and docs/training_file.md, written from the schemas.

`python -m sweeps.cli.file_formats.reference_pages` writes them anew; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from actors.families.registry import trainings
from fusion.parameters import fits_type
from fusion.registry import METHODS
from sweeps.cli.file_formats.fields import FieldOfFile, fields_of, meanings, parameters_of
from sweeps.spec.shift import ShiftSpec
from sweeps.spec.sweep import MlflowSpec, PlacementSpec, PoolSpec, SplitSpec, SweepSpec, TaskSpec
from sweeps.train.spec import SyntheticSpec, TrainSpec, default_family, schema

DOCS = Path(__file__).parents[3] / "docs"

EDITOR = """An editor that reads JSON schemas completes names and marks faults while you write:

    sweeps schema {option}> {file}

and as the first line of your file `# yaml-language-server: $schema={file}`."""

SWEEP_INTRO = f"""# The sweep file

Every field of the YAML file that `sweeps run` and `sweeps plan` read. This page is written from the
schema. `sweeps init BASE EXPERT… --out sweep.yaml` writes a commented file to begin with;
`sweeps plan sweep.yaml` checks it.

```yaml
name: three-experts
pool:
  base: models/base
  experts: {{mnist: models/mnist, svhn: models/svhn, cars: models/cars}}
tasks:
  mnist: {{dataset: data/mnist}}
  svhn: {{dataset: data/svhn}}
  cars: {{dataset: data/cars, templates: ["a photo of a {{}}, a kind of car."]}}
methods:
  ties: {{density: 0.2, scale: {{grid: [0.5, 1.0]}}}}
```

{EDITOR.format(option="", file="sweep.schema.json")}
"""

KEYS = (
    FieldOfFile(
        "trials",
        "an integer of at least 1",
        "required",
        "Samples of `choice`, `uniform` and `loguniform` spaces, for each combination of the grids."
        " Only with such spaces.",
        "trials: 16",
    ),
    FieldOfFile(
        "searcher",
        "random, tpe or cmaes",
        "random",
        "How samples are chosen. `cmaes` needs two continuous spaces or more.",
        "searcher: tpe",
    ),
    FieldOfFile(
        "scheduler",
        "null or asha",
        "null",
        "`asha` stops poor trials of methods that learn.",
        "scheduler: asha",
    ),
)
"""Keys that the entries of all methods have."""

METHODS_TEXT = """`methods.<name>` holds the parameters of a method; `{}` is all defaults.
`sweeps methods` lists the names; `sweeps methods NAME` explains one, with its parameters.
`methods: {import: my_module, …}` loads methods of your own from a Python module that is installed,
lies beside the sweep file or in the current folder; a list names several
([a method of another package](add_a_method.md#a-method-of-another-package)). In all methods:
"""

SPACES_TEXT = """A value, or any part of a list or mapping, can be a search space:

| space | tries |
|---|---|
| `{grid: [a, b, …]}` | every value, with every value of the other grids |
| `{choice: [a, b, …]}` | samples of the values |
| `{uniform: [low, high]}` | samples between two numbers |
| `{loguniform: [low, high]}` | samples between two numbers above 0, uniform in the logarithm |

`svc`, `knots` and `core_space` are made of another merge; `of` names it, with parameters that may
hold spaces:
`svc: {of: {ties: {density: {grid: [0.1, 0.2]}, scale: 1.0}}, alpha: {grid: [0.1, 1.0]}}`
"""

SCALES_TEXT = """`scale` of {names} has one of these forms:

* `0.3`: λ of the merged task vector.
* `{{start: 0.1, end: 0.5}}`: λ over depth, linear in the number of the layer. The first layer and
  the embeddings have `start`, the last layer and what comes after it have `end`.
* `{{preset: lines, alpha: 0.1, beta: 0.4}}`: LiNeS, α + β·depth in the layers and α elsewhere.
  Where task vectors are added, `alpha` is 1/T by default.
* `{{mnist: 0.3, svhn: {{start: 0.1, end: 0.5}}}}`: λ of each task, a number or a curve. It
  multiplies the task vector after its own trim or mask, and before tasks are compared or added.

Each number can be a search space: `scale: {{mnist: {{uniform: [0, 1]}}, svhn: 0.3}}` or
`scale: {{start: {{grid: [0.1, 0.2]}}, end: {{grid: [0.3, 0.5]}}}}`; so can the form:
`scale: {{grid: [1.0, {{start: 0.5, end: 1.5}}]}}`.

The depth of a tensor comes from the names of the whole model's tensors: the first number between
dots is its layer (`encoder.layers.3.mlp.fc1.weight`, `decoder.block.3.layer.0.…`), and what is
before it names a stack. Each stack, the encoder and the decoder of a T5 say, has a depth of its
own. Methods that also have `weights` take factors of the task vectors, by task or by task and
tensor (the forms of `weighted_average`); the mean of `ties` divides by their sum.
"""

TRAIN_INTRO = f"""# The training file

Every field of the YAML file that `sweeps train` reads. This page is written from the schema; what
training does: [training](training.md).

```yaml
name: three-experts
out: outputs/three-experts
base: openai/clip-vit-base-patch32
tasks:
  mnist: {{dataset: data/mnist}}
  svhn: {{dataset: data/svhn}}
finetune: {{learning_rate: {{grid: [1.0e-5, 1.0e-4]}}, epochs: 3}}
```

{EDITOR.format(option="--training ", file="training.schema.json")}
"""

PARTS: dict[str, type[BaseModel]] = {
    "pool": PoolSpec,
    "tasks.<name>": TaskSpec,
    "splits": SplitSpec,
    "placement": PlacementSpec,
    "shifts.<name>": ShiftSpec,
    "mlflow": MlflowSpec,
}


def scales_text() -> str:
    """The forms of `scale`, with the methods that take them."""
    found = [
        f"`{name}`"
        for name, method in METHODS.items()
        if "scale" in method.parameters and fits_type({}, method.parameters["scale"].annotation)
    ]
    return SCALES_TEXT.format(names=f"{', '.join(found[:-1])} and {found[-1]}")


def sweep_page() -> str:
    """The content of docs/sweep_file.md."""
    lines = [SWEEP_INTRO, "## The file\n", *table(fields_of(SweepSpec)), *parts(PARTS)]
    lines += ["## `methods`\n", METHODS_TEXT, *table(KEYS), SPACES_TEXT, scales_text().rstrip()]
    return "\n".join(lines) + "\n"


def training_page() -> str:
    """The content of docs/training_file.md."""
    lines = [TRAIN_INTRO, "## The file\n", *table(fields_of(TrainSpec))]
    shared = {name: PARTS[name] for name in ("tasks.<name>", "splits", "shifts.<name>")}
    names = ", ".join(f"`{name}`" for name in shared)
    lines += [f"{names}: as in the [sweep file](sweep_file.md).\n"]
    lines += parts({"tasks.<name>.synthetic": SyntheticSpec})
    for family, training in trainings().items():
        lines += [
            f"## `finetune`, {family} models\n",
            "Each may be a search space, with `trials`, `searcher` (as in the sweep file) and "
            "`scheduler` (`asha` or `pbt`).\n",
            *table(parameters_of(training.options, schema(training.options)), examples=False),
        ]
    made = trainings()[default_family()].pretraining
    assert made is not None
    known = schema(made.pretrain)
    known.pop("seed", None)
    lines += [
        f"## `pretrain`, {default_family()} models\n",
        *table((*sizes(made.sizes), *parameters_of(made.pretrain, known)), examples=False),
    ]
    return "\n".join(lines).rstrip() + "\n"


def sizes(owner: type) -> Iterator[FieldOfFile]:
    """The sizes of a base that is made, as fields."""
    known = meanings(owner)
    for name, value in vars(owner()).items():
        yield FieldOfFile(name, "int", str(value), known[name], "")


def parts(found: dict[str, type[BaseModel]]) -> Iterator[str]:
    """A section with its table for each part of a file."""
    for name, part in found.items():
        yield f"## `{name}`\n"
        yield from table(fields_of(part))


def table(fields: Iterable[FieldOfFile], examples: bool = True) -> list[str]:
    """Lines of a Markdown table of fields, and an empty one."""
    lines = ["| field | allowed | default | meaning |" + (" example |" if examples else "")]
    lines.append("|---|---|---|---|" + ("---|" if examples else ""))
    for each in fields:
        cells = [f"`{each.name}`", each.allowed, code(each.default), each.meaning]
        cells += [code(each.example)] if examples else []
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |")
    return [*lines, ""]


def code(text: str) -> str:
    """A value as code; the word `required` stays a word."""
    return text if text in ("", "required") else f"`{text}`"


PAGES = {"sweep_file.md": sweep_page, "training_file.md": training_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
