"""The model families, by the `model_type` of a `config.json`.

A family of another package registers itself by the entry point group `fusion_sweeps.families`, or
with `register`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from actors.artifacts.gate_file import Manifest
from actors.artifacts.published_gate import import_gate, read_published
from actors.checkpoints.checkpoint import Checkpoint, load_config
from actors.checkpoints.sources import config_folder, resolve
from actors.families.bert.family import BERT_FAMILY
from actors.families.clip.family import CLIP
from actors.families.protocol import ModelFamily, Training
from actors.families.t5.family import T5_FAMILY
from actors.families.vision.family import VISION
from fusion.errors import InputError, reading
from fusion.methods.learned.gate import Gate

GROUP = "fusion_sweeps.families"

FAMILIES: dict[str, ModelFamily] = {
    each.name: each for each in (CLIP, BERT_FAMILY, T5_FAMILY, VISION)
}


def register(family: ModelFamily) -> None:
    """Add a family, or replace the one of its name."""
    FAMILIES[family.name] = family


@cache
def plugins() -> tuple[str, ...]:
    """Register the families of installed packages, once a process; their names."""
    found = [entry.load() for entry in entry_points(group=GROUP)]
    for family in found:
        register(family)
    return tuple(family.name for family in found)


def trainings() -> dict[str, Training]:
    """Family -> its fine-tuning, of the families that have one."""
    plugins()
    found = {name: family.training() for name, family in FAMILIES.items()}
    return {name: training for name, training in found.items() if training is not None}


def training_of(checkpoint: Checkpoint) -> Training:
    """Fine-tuning of a checkpoint's family.

    Raises:
        InputError: a family whose models are only merged.
    """
    family = family_in(checkpoint)
    found = family.training()
    if found is None:
        raise InputError(
            f"{checkpoint.name}: {checkpoint.folder}: models of the family {family.name!r} cannot"
            f" be fine-tuned here; those of {', '.join(trainings())} can"
        )
    return found


def training_at(folder: Path) -> Training:
    """Fine-tuning of the model in a folder, by its configuration.

    Raises:
        InputError: see `training_of`; no configuration.
    """
    return training_of(inspect(str(folder), "base"))


def family_by_config(source: str, name: str) -> ModelFamily:
    """The family of a source, of which only `config.json` is read, or fetched.

    Raises:
        InputError: no such source, or a model of no family.
    """
    with reading(f"{name}: {source!r}"):
        folder = config_folder(source, what=name)
        return family_of(load_config(folder, name, tuple(by_type())), f"{name}: {folder}")


def published_gate(path: Path, *, groups: Sequence[str], **about: Any) -> tuple[Gate, Manifest]:
    """A gate that others have published, for models with these tensors.

    Args:
        path: its file, a pickle of tensors.
        groups: the pool's fused tensors, in order.
        about: see `import_gate`.

    Raises:
        InputError: no such file, or a gate of other models.
    """
    plugins()
    layouts = (family.published_layout(groups) for family in FAMILIES.values())
    layout = next((found for found in layouts if found is not None), None)
    return import_gate(read_published(path), layout=layout, **about)


def by_type() -> dict[str, ModelFamily]:
    """`model_type` -> family."""
    plugins()
    return {kind: family for family in FAMILIES.values() for kind in family.model_types}


def family_of(config: Mapping[str, Any], what: str) -> ModelFamily:
    """The family of a configuration; `what`: its file, for the message.

    Raises:
        InputError: a `model_type` of no family.
    """
    known = by_type()
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in known:
        return known[kind]
    classes = [each for family in FAMILIES.values() for each in classes_of(family)]
    raise InputError(
        f"{what}: model_type {kind!r}; allowed: {', '.join(known)} ({', '.join(classes)})"
    )


def classes_of(family: ModelFamily) -> list[str]:
    """The classes of `transformers` that a family reads, each once."""
    return list(dict.fromkeys(each for kinds in family.model_types.values() for each in kinds))


def inspect(source: str, name: str) -> Checkpoint:
    """A checkpoint's configuration and headers; no weight is read.

    Args:
        source: a folder, `embedded:NAME` or a hub id.
        name: the field of the spec that names it, for messages.

    Raises:
        InputError: no such source; a model of no family; no, damaged or lying files; missing,
            unknown or mis-shaped tensors; weights in a pickle.
    """
    folder = resolve(source, what=name)
    with reading(f"{name}: {folder}"):
        config = load_config(folder, name, tuple(by_type()))
        family = family_of(config, f"{name}: {folder / 'config.json'}")
        return family.inspect(source, folder, config, name)


def family_in(checkpoint: Checkpoint) -> ModelFamily:
    """The family of an inspected checkpoint."""
    return family_of(checkpoint.config, f"{checkpoint.name}: {checkpoint.folder / 'config.json'}")
