"""Model folders: merged weights in the place of the base's, and the files beside them."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from actors.checkpoints.checkpoint import Checkpoint, read
from actors.experts.recipe import results_dtype
from actors.families.registry import family_in
from actors.files.atomic import share_folder
from actors.files.documents import read_bytes, read_json
from fusion.errors import InputError


def write_model(part: Path, base: Checkpoint, fused: Mapping[str, Any], results: str) -> None:
    """Write a model into a folder: merged tensors, all others of the base, and the files beside
    its weights.

    Args:
        part: the folder, which is there.
        base: the model whose tensors are replaced.
        fused: canonical name -> tensor.
        results: `base`, or a dtype: then all floating-point tensors have it, and the configuration
            says so.
    """
    dtype = results_dtype(results)
    tensors = {}
    infos = {**base.tensors, **base.rest, **base.buffers}
    for name, tensor in read(base, infos):
        found = fused.get(name, tensor)
        kind = dtype if dtype is not None and found.is_floating_point() else found.dtype
        tensors[infos[name].plain] = found.to(kind).contiguous()
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    for name, data in companion_files(base).items():
        (part / name).write_bytes(data)
    set_fields(part / "config.json", family_in(base).exported(base))
    if dtype is not None:
        set_dtype(part / "config.json", results)


COMPANIONS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "generation_config.json", "open_clip_config.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files beside a model's weights that belong to it; other files of the folder are ignored."""


def companion_files(base: Checkpoint) -> dict[str, bytes]:
    """Name -> content of the files beside a model's weights that a copy of the model needs.

    Raises:
        InputError: one is no regular file, or a link out of the model's folder. A link of the
            hub's cache, from a snapshot to a blob of the same model, is followed.
    """
    folder = base.folder.resolve()
    roots = [folder, *([folder.parent.parent] if folder.parent.name == "snapshots" else [])]
    found = {}
    for name in COMPANIONS:
        file = base.folder / name
        if not os.path.lexists(file):
            continue
        if not any(file.resolve().is_relative_to(root) for root in roots):
            raise InputError(
                f"{base.name}: {file}: a link out of its folder, to {os.readlink(file)[:200]}; the"
                " file itself needed"
            )
        found[name] = read_bytes(file, base.name)
    return found


def check_new(out: Path) -> None:
    """Raise InputError if a path exists, including dangling links."""
    if os.path.lexists(out) or not out.name:
        raise InputError(f"{out}: is there already; give a new folder")


def set_fields(file: Path, fields: Mapping[str, Any]) -> None:
    """Set fields of a configuration; a file that has them already stays as it is."""
    config = read_json(file) if fields else {}
    if any(name not in config or config[name] != value for name, value in fields.items()):
        file.write_text(json.dumps({**config, **fields}, indent=2))


def set_dtype(file: Path, dtype: str) -> None:
    """Write the dtype of the tensors into a model's configuration, and into those of its towers."""
    config = read_json(file)
    config.setdefault("dtype" if "torch_dtype" not in config else "torch_dtype", dtype)
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    file.write_text(json.dumps(config, indent=2))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `out` at the end, or deleted if the block raises.

    Modes of all that is in it follow the umask.

    Raises:
        InputError: it cannot be written, or something is there already.
    """
    check_new(out)
    part = out.with_name(f".{out.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        share_folder(part)
        out.mkdir()  # fails where somebody has made it meanwhile; a rename would replace a link
        part.rename(out)
    except FileExistsError:
        raise InputError(f"{out}: is there already; give a new folder") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
