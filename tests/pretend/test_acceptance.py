"""The acceptance of `make gpu`, part by part on the pretended device, with tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.gpu import laws, layers, machine, memory, methods, product, speed
from tests.gpu.cases import few_rows
from tests.gpu.families import World
from tests.gpu.machine import Rates
from tests.gpu.places import Place
from tests.gpu.report import Part, Report, results_file
from tests.pretend.device import pretending

PLACE = Place("pretend")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def few(tiny_pool, tmp_path_factory):
    """The world of a replica."""
    cache = tmp_path_factory.mktemp("accepted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION_SWEEPS_CACHE", str(cache))
        world = World(*few_rows(tiny_pool.root, cache))
        yield lambda: world


def only(part: Part, *names: str) -> Part:
    """These rows of a part."""
    chosen = [row for row in part.rows() if row.name in names]
    assert len(chosen) == len(names)
    return replace(part, rows=lambda: chosen)


def lines_of(part: Part, folder: Path) -> list[dict[str, object]]:
    """The rows that a part writes, all of them right."""
    report = Report(results_file(PLACE, "day", folder), PLACE, "a test")
    with pretending():
        report.run(part)
    assert report.wrong == report.late == 0, report.file.read_text()
    return [json.loads(line) for line in report.file.with_suffix(".jsonl").open()]


def test_the_machine(tmp_path):
    rows = lines_of(machine.part(PLACE, Rates(PLACE, True)), tmp_path)
    assert {"copy", "product, fp32", "product, tf32", "product, bf16"} <= {r["row"] for r in rows}


def test_some_methods(few, tmp_path):
    names = [f"task_arithmetic: {what}" for what in ("merges", "merges in bfloat16", "logits")]
    names += ["wise_ft_linear: logits of a fit", "adamerging: gradients"]
    lines_of(only(methods.part(PLACE, few), *names), tmp_path)


def test_layers(tmp_path):
    rows = lines_of(layers.part(PLACE, {}), tmp_path)
    assert len(rows) == len(layers.forms()) * len(layers.MODELS) + 1


def test_some_laws(tmp_path):
    chosen = only(laws.part(PLACE), "task_arithmetic", "ensemble")
    [merges, fuses] = lines_of(chosen, tmp_path)
    assert (merges["laws kept"], fuses["laws kept"]) == ("9 of 9", "4 of 4")


def test_speed(tmp_path):
    names = ("task_arithmetic, merge", "evaluation, 16 images, bf16")
    names += ("evaluation, 16 images, fp32, by CUDA graph", "a model a sample, 8 images, form A")
    with pretending():
        part = only(speed.part(PLACE, Rates(PLACE, True), "tiny", tmp_path / "speed"), *names)
    merge, *_ = rows = lines_of(part, tmp_path)
    assert all(float(str(row["ours, ms"])) > 0 for row in rows)
    assert float(str(merge["straightforward, ms"])) > 0
    graphed = next(row for row in rows if "graph" in str(row["row"]))
    assert graphed["note"] not in ("same bits", "", "none on a CPU")  # there is no CUDA here: why


def test_memory(tmp_path):
    with pretending():
        part = only(memory.part(PLACE, "tiny", tmp_path / "memory"), "evaluation")
    [row] = lines_of(part, tmp_path)
    assert 0 < float(str(row["peak of planned"])) <= 1


def test_what_is_merged_there_is_rebuilt_on_the_cpu(few, tiny_pool, tmp_path):
    part = product.part(PLACE, few, lambda: tiny_pool.root, tmp_path / "product")
    lines_of(only(part, "ties: rebuilt", "adamerging: rebuilt"), tmp_path)


def test_a_method_that_is_wrong_there_is_found(few, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "laws", Off())
    report = Report(tmp_path / "r.md", PLACE, "a test")
    with pretending():
        report.run(only(methods.part(PLACE, few), "simple_average: merges"))
    assert report.wrong == 1
    assert "| simple_average: merges | " in report.file.read_text()


class Off:
    """The laws' helpers, with a merge that is off by a millionth on the device."""

    def __getattr__(self, name: str) -> object:
        return getattr(methods_laws, name)

    def merge(self, name: str, vectors: object, params: dict[str, object]) -> object:
        found = methods_laws.merge(name, vectors, params)
        away = any(tensor.device.type == "cuda" for tensor in found.values())
        return {k: t * (1 + 1e-5 * away) for k, t in found.items()}


methods_laws = methods.laws


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole(tiny_pool, tmp_path):
    """All but the commands of `product`, whose models are tested above."""
    command = [sys.executable, "-m", "tests.gpu", "--device", "pretend", "--size", "tiny"]
    command += ["--parts", "machine", "methods", "layers", "speed", "memory", "laws"]
    command += ["--pool", str(tiny_pool.root), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    [file] = tmp_path.glob("pretended_gpu_*.md")
    text = file.read_text()
    assert "No GPU was used" in text
    assert "0 wrong, 0 not run" in text
    assert torch.version.cuda is None or not list((ROOT / "benchmarks/results").glob("gpu_*"))
