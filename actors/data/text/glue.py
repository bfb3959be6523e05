"""The eight GLUE tasks as text-to-text tasks, by name: templates and targets `glue_v1`.

Templates, label order, targets and metrics are those of the Flan-T5 experts of FusionBench
(`fusion_bench/tasks/flan_t5_text_generation/glue_prompt_templates.py`), byte for byte: "Answere" is
theirs. The label order is that of the data set `nyu-mll/glue` on the hub. STS-B is a task of 51
classes, the similarity from 0.0 to 5.0 rounded to one decimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HUB = ("nyu-mll/glue", "glue")
"""Names of the data set on the hub; its configurations are the tasks."""

ALIASES = {"sst-2": "sst2", "sst_2": "sst2", "sts-b": "stsb", "sts_b": "stsb"}


@dataclass(frozen=True)
class Glue:
    """One task."""

    columns: tuple[str, ...]
    """In the data set's order, which is that of published classifiers on pairs."""
    template: str
    targets: Mapping[str, str]
    """Class name of the data set -> target, in the order of the labels."""
    metric: str = "acc"
    numbers: bool = False
    """Whether labels are numbers, which the targets round."""


SCORES = tuple(f"{tenths / 10:.1f}" for tenths in range(51))

TASKS: Mapping[str, Glue] = {
    "cola": Glue(
        ("sentence",),
        'Indicate if the following sentence is grammatically correct or not: "{sentence}".'
        " Answere 'acceptable' or 'unacceptable'.",
        {"unacceptable": "unacceptable", "acceptable": "acceptable"},
    ),
    "mnli": Glue(
        ("premise", "hypothesis"),
        "Does the premise: '{premise}' logically imply, contradict, or is neutral to the"
        " hypothesis: '{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'.",
        {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
    ),
    "mrpc": Glue(
        ("sentence1", "sentence2"),
        "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning?"
        " Answere with 'yes' or 'no'.",
        {"not_equivalent": "no", "equivalent": "yes"},
    ),
    "qnli": Glue(
        ("question", "sentence"),
        "Given the context: '{sentence}', does the question '{question}' have an answer based on"
        " the information provided? Answer with 'yes' or 'no'.",
        {"entailment": "yes", "not_entailment": "no"},
    ),
    "qqp": Glue(
        ("question1", "question2"),
        "Do the questions '{question1}' and '{question2}' have the same intent? Answere with"
        " 'yes' or 'no'.",
        {"not_duplicate": "no", "duplicate": "yes"},
    ),
    "rte": Glue(
        ("sentence1", "sentence2"),
        "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.",
        {"entailment": "yes", "not_entailment": "no"},
    ),
    "sst2": Glue(
        ("sentence",),
        "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
        {"negative": "negative", "positive": "positive"},
    ),
    "stsb": Glue(
        ("sentence1", "sentence2"),
        "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely"
        " different) to 5 (completely similar), rate the similarity.",
        {score: score for score in SCORES},
        metric="spearman",
        numbers=True,
    ),
}


def builtin(name: str, dataset: str) -> tuple[Glue, str] | None:
    """The built-in task of a name (`cola`, `glue-cola`), or of a data set (`nyu-mll/glue:cola`).

    >>> builtin("glue_sts-b", "a folder")[1], builtin("x", "nyu-mll/glue:rte")[1]
    ('stsb', 'rte')
    >>> builtin("x", "a folder")
    """
    source, _, config = dataset.partition("@")[0].partition(":")
    for each in (name, config if source in HUB else ""):
        short = each.lower().removeprefix("glue-").removeprefix("glue_")
        short = ALIASES.get(short, short)
        if short in TASKS:
            return TASKS[short], short
    return None
