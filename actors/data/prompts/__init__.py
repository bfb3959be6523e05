"""Class names and prompt templates of well-known tasks, as data.

`clip.json`: the eight tasks of the merging literature, from OpenAI CLIP's `data/prompts.md`, in the
label order of their data sets on the hub (EuroSAT: alphabetical folder names). `others` holds the
names that the data set itself uses, where their spelling differs. `small.json`: eight small data
sets with templates of our own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from actors.data.class_names import normalised

DEFAULT_TEMPLATES = ("a photo of a {}.",)

ALIASES = {
    "cars": "stanford-cars",
    "stanford_cars": "stanford-cars",
    "fashion-mnist": "fashion_mnist",
}


@dataclass(frozen=True)
class Prompts:
    """Class names and prompt templates of a task."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    """Each with one `{}`."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Names that data sets use for these classes, normalised -> class name."""


def builtin(task: str) -> Prompts | None:
    """Built-in prompts of a task, by its name without owner; None: not built in.

    >>> builtin("tanganke/stanford_cars").classnames[0]
    'AM General Hummer SUV 2000'
    """
    name = task.rsplit("/", 1)[-1].lower()
    return table().get(ALIASES.get(name, name))


@cache
def table() -> Mapping[str, Prompts]:
    """All built-in prompts by task name."""
    found = {}
    for file in ("clip.json", "small.json"):
        text = (files(__name__) / file).read_text(encoding="utf-8")
        for name, entry in json.loads(text).items():
            others = {normalised(k): v for k, v in entry.get("others", {}).items()}
            found[name] = Prompts(tuple(entry["classnames"]), tuple(entry["templates"]), others)
    return found


def fill(template: str, classname: str) -> str:
    """A prompt.

    >>> fill("a photo of a {}.", "cat")
    'a photo of a cat.'
    """
    return template.replace("{}", classname)
