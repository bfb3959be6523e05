"""Bad inputs of a sweep, each as a change of a good one: what `plan` and `run` must both refuse."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Change = Callable[[dict[str, Any], Path], object]
"""Changes a sweep's content; may write files into a folder of its own."""


def put(path: str, value: Any) -> Change:
    """One field; `path` is dotted."""
    *parents, last = path.split(".")

    def change(spec: dict[str, Any], here: Path) -> None:
        inner = spec
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = value

    return change


def task_with(damage: Callable[[Path], object]) -> Change:
    """A copy of the task `tones`, damaged."""

    def change(spec: dict[str, Any], here: Path) -> None:
        shutil.copytree(spec["tasks"]["tones"]["dataset"], here / "data")
        damage(here / "data")
        spec["tasks"]["tones"]["dataset"] = str(here / "data")

    return change


def relabelled(split: str, label: Callable[[int, int], int | None]) -> Callable[[Path], object]:
    """Other labels: label(row, its label)."""

    def damage(folder: Path) -> None:
        table = pq.read_table(folder / f"{split}.parquet")
        column = table.column_names.index("label")
        values = [label(row, old) for row, old in enumerate(table.column("label").to_pylist())]
        new = table.set_column(column, "label", pa.array(values, pa.int64()))
        pq.write_table(
            new.replace_schema_metadata(table.schema.metadata), folder / f"{split}.parquet"
        )

    return damage


def member(place: str, damage: Callable[[Path], object]) -> Change:
    """A copy of the base, or of an expert, damaged."""

    def change(spec: dict[str, Any], here: Path) -> None:
        pool = spec["pool"]
        source = pool["base"] if place == "base" else pool["experts"][place]
        shutil.copytree(source, here / "model")
        damage(here / "model")
        if place == "base":
            pool["base"] = str(here / "model")
        else:
            pool["experts"][place] = str(here / "model")

    return change


def edited(file: str, **fields: Any) -> Callable[[Path], object]:
    """Fields of a JSON file."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | fields))

    return damage


def written(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def half(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def renamed_text(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    key = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    tensors[key.replace("final_layer_norm", "last")] = tensors.pop(key)
    save_file(tensors, folder / "model.safetensors")


def another_sweep(spec: dict[str, Any], here: Path) -> None:
    """A sweep of the name is there already."""
    folder = here / "outputs" / spec["name"]
    folder.mkdir(parents=True)
    identity = {"sweep_id": "0" * 8, "spec_hash": "f" * 16, "created": "2024-01-01T00:00:00"}
    (folder / "sweep.json").write_text(json.dumps(identity))


def no_store(spec: dict[str, Any], here: Path) -> None:
    (here / "store.db").write_bytes(b"no database" * 99)
    spec["mlflow"] = {"tracking_uri": f"sqlite:///{here / 'store.db'}"}


def half_a_store(spec: dict[str, Any], here: Path) -> None:
    with sqlite3.connect(here / "store.db") as db:
        db.execute("create table experiments (id int)")
    spec["mlflow"] = {"tracking_uri": f"sqlite:///{here / 'store.db'}"}


GATED = {"dawe": {"extractor": "nowhere", "steps": 2}}
SHIFT = {"corruption": "gaussian_noise", "severity": 2}
GRID = {"grid": list(range(1, 2001))}
FRACTIONS = {"grid": [number / 2000 for number in range(1, 2000)]}

BAD: dict[str, Change] = {
    # the file
    "unknown method": put("methods.tise", {}),
    "unknown parameter": put("methods.ties.densty", 0.2),
    "out of range": put("methods.wise_ft.alpha", 1.5),
    "seed": put("seed", -1),
    "unknown metric": put("metric", "acc/maen"),
    "reserved name": put("name", "../x"),
    "billions of trials": put(
        "methods.ties", {"scale": {"uniform": [0.1, 1]}, "trials": 10**9}),
    "millions by grids": put("methods", {"dare": {"seed": GRID, "density": FRACTIONS}}),
    # parameters that name what is not there
    "no such expert": put("methods.wise_ft.expert", "tonse"),
    "weights of one expert": put("methods.weighted_average", {"weights": {"tones": 1.0}}),
    "no such ingredient": put("methods.greedy_soup", {"ingredients": ["nobody"]}),
    "no extractor": put("methods", GATED),
    "no gate": put("methods", {"dawe": {"extractor": "embedded:base", "gate": "nowhere"}}),
    # data
    "no data": put("tasks.tones.dataset", "./nowhere"),
    "no split": put("splits.report", "nope"),
    "no column": put("tasks.tones.label", "labels"),
    "two class names": put("tasks.tones.classnames", ["a", "b"]),
    "one prompt for two": put("tasks.tones.classnames", ["a", "a", "b"]),
    "no head": put("tasks.tones.head", "nowhere.safetensors"),
    "a prompt too long": put("tasks.tones.classnames", ["word " * 99, "b", "c"]),
    "labels below 0": task_with(relabelled("train", lambda row, old: old - 1)),
    "one label below 0": task_with(relabelled("test", lambda row, old: -1 if row == 7 else old)),
    "labels from 1": task_with(relabelled("test", lambda row, old: old + 1)),
    "no label": task_with(relabelled("train", lambda row, old: None if row == 9 else old)),
    "one class to fit": lambda spec, here: (
        task_with(relabelled("train", lambda row, old: 1))(spec, here),
        put("methods", {"linear_probe": {}})(spec, here)),
    "no row to spare": task_with(lambda folder: pq.write_table(
        pq.read_table(folder / "train.parquet").slice(0, 3), folder / "train.parquet")),
    "no parquet": task_with(written("test.parquet", b"PAR1" * 9)),
    "no rows": task_with(lambda folder: pq.write_table(
        pq.read_table(folder / "test.parquet").slice(0, 0), folder / "test.parquet")),
    "a pointer of Git LFS": task_with(
        written("test.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
    "no shift set": put("shifts", {"other": {"dataset": "./nowhere"}}),
    "shift labels": lambda spec, here: (
        shutil.copytree(spec["tasks"]["tones"]["dataset"], here / "shift"),
        relabelled("test", lambda row, old: old + 5)(here / "shift"),
        put("shifts", {"other": {"dataset": str(here / "shift"), "task": "tones"}})(spec, here)),
    # models
    "no base": put("pool.base", "./nowhere"),
    "half of an expert": member("tones", half),
    "half of a base": member("base", half),
    "a pointer for weights": member(
        "tones", written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")),
    "another architecture": member("tones", edited("config.json", num_attention_heads=4)),
    "layers without end": member("tones", edited("config.json", num_hidden_layers=10**12)),
    "no tokenizer": member("base", lambda folder: [
        (folder / name).unlink(missing_ok=True)
        for name in ("tokenizer.json", "vocab.json", "merges.txt")]),
    "a broken tokenizer": member("base", written("tokenizer.json", b'{"model": {"type": "BPE"')),
    "a text tower's tensor": member("base", renamed_text),
    "preprocessing": member("base", edited("preprocessor_config.json", image_mean="x")),
    "no preprocessing": member(
        "base", lambda folder: (folder / "preprocessor_config.json").unlink()),
    # where
    "no GPU": put("placement", {"device": "cuda"}),
    "too many shards": put("placement", {"shards": 99}),
    "no adapters": put("placement", {"weights": "factored"}),
    "no MLflow": put("mlflow.tracking_uri", "http://127.0.0.1:9"),
    "a file store": put("mlflow.tracking_uri", "file:///tmp/x"),
    "no such scheme": put("mlflow.tracking_uri", "nothing://x"),
    "a store that is none": no_store,
    "half a store": half_a_store,
    "another sweep": another_sweep,
    "outputs are a file": lambda spec, here: (here / "outputs").write_text(""),
}  # fmt: skip

GOOD: dict[str, Change] = {
    "as it is": lambda spec, here: None,
    "an empty class": lambda spec, here: (
        task_with(relabelled("train", lambda row, old: min(old, 1)))(spec, here),
        put("methods", {"tip_adapter": {"shots": 4}, "cafo": {"shots": 4}})(spec, here)),
    "more images a batch than rows": put(
        "methods", {"adamerging": {"steps": 1, "batch_size": 128}}),
}  # fmt: skip
"""What both must take."""
