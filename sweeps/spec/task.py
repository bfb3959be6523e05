"""A task of a sweep file: a data set of images or of texts, its classes, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from actors.data.task import TaskSource
from actors.experts.metrics import TASK_METRICS
from fusion.errors import unknown
from sweeps.spec.errors import Fault, custom_error, raise_all
from sweeps.spec.fields import Part, Source, Text

WORDS = ("text", "template", "targets", "metric", "objective", "synthetic")
"""Fields that the first files did not have; `synthetic` is one of training files alone."""


class TaskSpec(Part):
    """A classification data set. Images: the words for its zero-shot head; texts: for its rows."""

    dataset: Source = Field(examples=["data/flowers"])
    """The data set: a folder, a folder and its configuration (`path:name`), `embedded:NAME`, or an
    id on the hub (`name:configuration@revision`)."""
    image: Text = Field(
        default="image", description="the name of the image column", examples=["img"]
    )
    """Column of images, where the data are tables."""
    label: Text = Field(
        default="label", description="the name of the label column", examples=["fine_label"]
    )
    """Column of labels."""
    templates: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="a list of texts with {} where the class name goes",
        examples=[["a photo of a {}."]],
    )
    """Prompts of the zero-shot head. Default: those that are built in for the task's name, else
    `a photo of a {}.` alone."""
    classnames: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="a list of texts, one for each label",
        examples=[["rose", "tulip"]],
    )
    """Names of the classes, in the order of the labels. Default: those of the data, or those that
    are built in for the task's name."""
    head: Text | None = Field(
        default=None,
        description="a head file of `sweeps train`, or null (the zero-shot head),",
        examples=["models/heads/flowers.safetensors"],
    )
    """The classifier of the task, where it is not made of the class names."""
    text: Text | tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="the name of the text column, a list of such names, or null (those of the"
        " template)",
        examples=["sentence"],
    )
    """Columns of a text task."""
    template: Text | None = Field(
        default=None,
        description="a text with {column} where a row's text goes, or null",
        examples=["Good or bad? {sentence}"],
    )
    """Prompt of a model that writes text. Default: the columns, joined by blanks."""
    targets: tuple[str, ...] | Mapping[Text, str] | None = Field(
        default=None,
        min_length=1,
        description="a list of answers by label, a mapping of class names to answers, or null (the"
        " class names)",
        examples=[{"neg": "bad", "pos": "good"}],
    )
    """Answers (verbalisers) of a model that writes text."""
    metric: str | None = Field(
        default=None,
        description=f"one of {', '.join(TASK_METRICS)}, or null (acc)",
        examples=["f1"],
    )
    """What the task is judged by, in `score/…`."""
    objective: Literal["vocabulary", "answers", "fusionbench"] | None = Field(
        default=None, description="vocabulary, answers, fusionbench, or null (vocabulary)"
    )
    """Which entropy methods minimise that learn without labels, of a model that writes text."""

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, given: Any) -> Any:
        texts = given.values() if isinstance(given, Mapping) else given
        listed = isinstance(given, Mapping | list | tuple)
        if given is None or (listed and all(isinstance(each, str) for each in texts)):
            return given
        raise custom_error(
            "a list of answers by label, a mapping of class names to answers, or null (the class"
            " names) allowed; an answer that is a number, yes or no needs quotes"
        )

    @field_validator("templates")
    @classmethod
    def _templates(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        allowed = "a text with {} where the class name goes"
        faults = [
            Fault((at,), text, allowed)
            for at, text in enumerate(templates or ())
            if text.count("{}") != 1
        ]
        if faults:
            raise_all(faults)
        return templates

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        if metric is not None and metric not in TASK_METRICS:
            raise custom_error(unknown("metric of a task", metric, TASK_METRICS))
        return metric

    @model_serializer(mode="wrap")
    def _without_unset(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields of texts are left out where they are not given, and of text tasks those of images.

        So files and hashes of image tasks do not change with fields of other kinds.
        """
        found: dict[str, Any] = serialise(self)
        words = {name: found.pop(name, None) for name in WORDS}
        return {**found, **{name: value for name, value in words.items() if value is not None}}

    def source(self, name: str) -> TaskSource:
        """The task as data sets are opened by."""
        return TaskSource(name, **{each: getattr(self, each) for each in TaskSpec.model_fields})
