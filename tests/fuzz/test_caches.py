"""Files that the product writes for itself: damage is found and made again, or changes nothing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from actors.artifacts import statistics_file
from actors.artifacts.cache_files import KINDS, fault_of, files_of
from actors.artifacts.head_file import read_head
from actors.cluster import measured_memory
from actors.cluster.partition import Load
from actors.data.images.pixel_cache import cached_labels, open_pixels
from actors.data.images.pixel_cache_writer import PixelWriter
from actors.data.images.shifted_pixels import chunk
from actors.files import hashes
from actors.files.checksums import sealed, sealed_json, unsealed_json
from actors.files.matrix_file import matrix_shape, open_matrix, write_matrix
from fusion.errors import InputError
from sweeps.results.correctness_file import Kept, read_kept, write_kept
from tests.fuzz.damage import altered, only_input_errors

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 3 * 4 * 4)).astype(np.uint8)
LABELS = np.array([0, 2, 1, 1, 0])
VALUES = RNG.standard_normal((6, 5)).astype(np.float32)
HEAD = torch.arange(12.0).view(3, 4)
GRAM = {"q": torch.eye(3), "k": torch.ones(2, 2)}
SHARED = {"q": "q", "k": "k", "v": "q"}
SCORES = Kept(
    "key", {"acc/mean": 0.5}, np.array(["a", "a", "b"]), np.arange(3), np.array([True, False, True])
)


@dataclass(frozen=True)
class Kind:
    """One kind of file: how it is written, and what a reader gets; None: it makes it again."""

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]


def write_pixels(path: Path) -> None:
    with PixelWriter([(path, 5, {"shape": "3,4,4"})], IMAGES.shape[1]) as writer:
        writer.write(chunk(IMAGES, LABELS, 0))


def read_pixels(path: Path) -> Any:
    if cached_labels(path) is None:
        return None
    found = open_pixels(path)
    return found.images.tolist(), found.labels.tolist()


def read_matrix(path: Path) -> Any:
    return None if matrix_shape(path) is None else open_matrix(path, "numbers").tolist()


def read_statistics(path: Path) -> Any:
    if not statistics_file.sound(path):
        return None
    found = statistics_file.opened([path.stem.rpartition("-")[0]], [0], path.parent.parent)
    return {name: found[name].tolist() for name in found}


def refusing(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A reader whose refusal is an `InputError` of one line."""

    def reader(path: Path) -> Any:
        found = None
        with only_input_errors():
            found = read(path)
        return found

    return reader


def read_facts(path: Path) -> Any:
    try:
        return unsealed_json(path.read_bytes())
    except ValueError:
        return None


def read_scores(path: Path) -> Any:
    kept = read_kept(path)
    found = (kept.tasks.tolist(), kept.index.tolist(), kept.correct.tolist())
    return kept.trial_key, dict(kept.metrics), *found


KINDS_HERE = [
    Kind("pixels", write_pixels, read_pixels),
    Kind("embeddings", lambda p: write_matrix(p, np.arange(6), 5, [VALUES]), read_matrix),
    Kind(
        "heads",
        lambda p: p.write_bytes(sealed({"head": HEAD}, {})),
        refusing(lambda p: read_head(p).tolist()),
    ),
    Kind(
        "statistics",
        lambda p: statistics_file.write(p, GRAM, {"q": "q", "v": "q"}),
        read_statistics,
    ),
    Kind("hashes", lambda p: p.write_text(sealed_json({"sha256": "ab", "files": 2})), read_facts),
    Kind("correct", lambda p: write_kept(p, SCORES), refusing(read_scores)),
]

NAMES = {"heads": "head.safetensors", "statistics": "key-0.safetensors", "hashes": "h.json"}


@pytest.mark.parametrize("kind", KINDS_HERE, ids=lambda kind: kind.name)
@given(data=st.data())
def test_damage_is_found_or_changes_nothing(kind, data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "caches" / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAMES.get(kind.name, "f.arrow")
    kind.write(path)
    whole, content = kind.read(path), path.read_bytes()
    assert whole is not None
    path.write_bytes(data.draw(altered(content)))
    assert kind.read(path) in (None, whole)
    assert kind.read(path) in (None, whole)
    path.unlink()


def test_an_empty_file_and_one_of_noise(tmp_path):
    for kind in KINDS_HERE:
        folder = tmp_path / kind.name
        folder.mkdir()
        path = folder / NAMES.get(kind.name, "f.arrow")
        for content in (b"", b"\0" * 100, RNG.bytes(1000)):
            path.write_bytes(content)
            assert kind.read(path) is None


def test_verify_names_what_is_damaged_and_removes_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from sweeps.cli.main import app

    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path))
    for kind in KINDS_HERE[:5]:
        (tmp_path / kind.name).mkdir()
        kind.write(tmp_path / kind.name / NAMES.get(kind.name, "f.arrow"))
    assert CliRunner().invoke(app, ["cache", "verify"]).exit_code == 0
    assert CliRunner().invoke(app, ["cache", "list"]).exit_code == 0
    bad = []
    for kind in KINDS_HERE[:5]:
        path = tmp_path / kind.name / NAMES.get(kind.name, "f.arrow")
        content = bytearray(path.read_bytes())
        content[content.rindex(b"xxh3") + 1] ^= 1
        path.write_bytes(content)
        bad.append(path)
    said = CliRunner().invoke(app, ["cache", "verify"])
    assert said.exit_code == 1
    assert "5 damaged" in said.output
    assert all(str(path) in said.output.replace("\n", "") for path in bad)
    assert CliRunner().invoke(app, ["cache", "verify", "--remove"]).exit_code == 0
    assert not any(path.exists() for path in bad)
    assert CliRunner().invoke(app, ["cache", "verify"]).exit_code == 0


def test_a_peak_and_a_hash_that_are_damaged_count_as_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path))
    load = Load(segments=(1,), experts=1, compute_itemsize=4, forward_bytes=1)
    measured_memory.keep_peak(load, 10, tmp_path)
    assert measured_memory.with_measured(load, tmp_path).measured == 10
    (file,) = files_of("peaks", tmp_path)
    file.write_text(file.read_text().replace("10", "11"))
    assert measured_memory.with_measured(load, tmp_path).measured == 0
    assert fault_of("peaks", file) == "another checksum"
    (tmp_path / "a").write_text("x")
    hashes.hash_files({"a": tmp_path / "a"})
    (entry,) = files_of("hashes", tmp_path)
    content = json.loads(entry.read_text())
    entry.write_text(json.dumps({**content, "sha256": "0" * 64}))
    assert fault_of("hashes", entry) == "another checksum"


def test_files_of_earlier_versions_without_checksums_are_not_used(tmp_path):
    save_file({"head": HEAD}, tmp_path / "h.safetensors")
    with pytest.raises(InputError, match="no checksum"):
        read_head(tmp_path / "h.safetensors")
    assert set(KINDS) >= {kind.name for kind in KINDS_HERE[:5]}
