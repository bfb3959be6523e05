"""Bad input: one clear line, exit 2, nothing started, nothing written."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from sweeps.cli import main


def call(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    """Run the program in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["sweeps", *map(str, words)])
    try:
        main.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(monkeypatch, capsys, here, spec, expected) -> None:
    status, _, said = call(monkeypatch, capsys, "run", spec)
    assert status == 2, said
    assert expected in said
    assert said.count("\n") == 1, said
    left = [path.name for path in (here / "outputs").glob("*") if not path.name.startswith(".")]
    assert left in ([], ["mlflow.db"])


def changed(spec: dict, path: str, value) -> dict:
    """The spec with one field replaced; `path` is dotted."""
    *parents, last = path.split(".")
    inner = spec
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return spec


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("methods.tise", {}, "unknown method 'tise'; did you mean 'ties'?"),
        ("methods.ties.densty", 0.2, "unknown parameter 'densty'; did you mean 'density'?"),
        ("metric", "acc/maen", "unknown metric 'acc/maen'; did you mean 'acc/mean'?"),
        ("splitz", {}, "unknown field 'splitz'; did you mean 'splits'?"),
        ("methods.wise_ft.alpha", 1.5, "methods.wise_ft.alpha: 1.5: float in [0, 1] allowed"),
        ("methods.wise_ft.expert", "tonse", "tonse"),
        ("methods.weighted_average.weights", {"tone": 1.0}, "methods.weighted_average"),
        ("methods.ties.scale", {"tone": 1.0}, "methods.ties: scale: unknown task 'tone'; did you"),
        ("methods.ties.scale", {"start": 1.0}, "methods.ties: scale: end: not given; a number"),
        ("methods.ties.scale", "0.3", "methods.ties.scale: '0.3': float or mapping allowed"),
        ("splits.report", "val", "selecting on it needs 'select: val' spelled out"),
        ("splits.report", "nope", "no split 'nope'; there: "),
        ("tasks.tones.classnames", ["a", "b"], "tones"),
        ("tasks.tones.dataset", "./nowhere", "no such folder"),
        ("pool.base", "./nowhere", "no such folder"),
        ("placement", {"device": "cuda"}, "has no GPU: use 'cpu'"),
        ("placement", {"shards": 9}, "the model has 4 segments: 1 to 4 allowed"),
        ("mlflow.tracking_uri", "http://127.0.0.1:9", "mlflow.tracking_uri: 'http://127.0.0.1:9'"),
        ("mlflow.tracking_uri", "file:///tmp/x", "no file stores any more"),
    ],
)
def test_a_spec_that_will_not_do(path, value, expected, here, tiny_pool, monkeypatch, capsys):
    spec = here / "s.yaml"
    spec.write_text(yaml.safe_dump(changed(tiny_pool.spec(), path, value)))
    refused(monkeypatch, capsys, here, spec, expected)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def scrambled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)


def rewritten(change):
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        change(state, next(name for name in state if name.endswith("post_layernorm.weight")))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def reconfigured(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_attention_heads"] = 4
    (folder / "config.json").write_text(json.dumps(config))


def other_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (pickled, "pytorch_model.bin"),
        (truncated, "model.safetensors"),
        (scrambled, "model.safetensors"),
        (rewritten(lambda s, k: s.pop(k)), "'post_layernorm.weight': missing"),
        (rewritten(lambda s, k: s.update(surplus=s[k].clone())), "surplus"),
        (rewritten(lambda s, k: s.update({k: s[k][:5].clone()})), "shape [5]"),
        (rewritten(lambda s, k: s.update({k: s[k].int()})), "dtype"),
        (reconfigured, "num_attention_heads: 4; the base has 2"),
        (other_kind, "model_type 'gpt2'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_expert_that_will_not_do(damage, expected, here, tiny_pool, monkeypatch, capsys):
    bad = here / "bad"
    shutil.copytree(tiny_pool.root / "experts" / "tones", bad)
    damage(bad)
    spec = here / "s.yaml"
    spec.write_text(yaml.safe_dump(changed(tiny_pool.spec(), "pool.experts.tones", str(bad))))
    refused(monkeypatch, capsys, here, spec, expected)


def test_a_disk_that_is_too_full(here, tiny_pool, monkeypatch, capsys):
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    spec = tiny_pool.write(here / "s.yaml")
    refused(monkeypatch, capsys, here, spec, "of disk needed, 0.00 GB free")


def test_memory_that_is_too_small(here, tiny_pool, monkeypatch, capsys):
    from actors.cluster.planner import Node, Resources
    from sweeps.cluster import ray_connection

    monkeypatch.setattr(
        ray_connection, "this_machine", lambda: Resources((Node(2, 0, 500 * 2**20),))
    )
    spec = tiny_pool.write(here / "s.yaml")
    refused(monkeypatch, capsys, here, spec, "need")


def test_several_faults_are_several_lines(here, tiny_pool, monkeypatch, capsys):
    spec = changed(changed(tiny_pool.spec(), "methods.tise", {}), "seed", -1)
    (here / "s.yaml").write_text(yaml.safe_dump(spec))
    status, _, said = call(monkeypatch, capsys, "plan", "s.yaml")
    assert status == 2
    assert said.count("\n") == 2
    assert all(line.startswith("s.yaml: ") for line in said.splitlines())


def test_plan_prints_placement_memory_trials(here, tiny_pool, monkeypatch, capsys):
    tiny_pool.write(here / "s.yaml")
    status, said, _ = call(monkeypatch, capsys, "plan", "s.yaml")
    assert status == 0
    for word in ("3 experts", "replica(s) on CPU", "task_arithmetic", "420 images"):
        assert word in said
    assert not (here / "outputs").exists()


def test_set_overrides_and_debug_shows_the_traceback(here, tiny_pool, monkeypatch, capsys):
    tiny_pool.write(here / "s.yaml")
    status, _, said = call(
        monkeypatch, capsys, "plan", "s.yaml", "--set", "methods.wise_ft.alpha=7"
    )
    assert status == 2
    assert "float in [0, 1] allowed" in said
    status, _, said = call(monkeypatch, capsys, "--debug", "plan", "s.yaml", "--set", "seed=-1")
    assert status == 2
    assert "Traceback" in said
    assert "seed" in said.splitlines()[-1]


def test_methods_as_json_and_an_unknown_one(monkeypatch, capsys):
    status, said, _ = call(monkeypatch, capsys, "methods", "--json")
    assert status == 0
    assert {row["name"] for row in json.loads(said)} >= {"ties", "ensemble"}
    status, _, said = call(monkeypatch, capsys, "methods", "tys")
    assert (status, said.count("\n")) == (2, 1)


def test_reports_and_recipes_that_are_not_there(here, monkeypatch, capsys):
    for words in (("report", "nope"), ("export", "nope.yaml", "out")):
        status, _, said = call(monkeypatch, capsys, *words)
        assert status == 2
        assert "nope" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("command", [("plan", "s.yaml"), ("analyse", "s.yaml"), ("quickstart",)])
def test_a_module_to_import_that_is_missing_is_refused_before_all_else(
    command, here, tiny_pool, monkeypatch, capsys
):
    monkeypatch.setattr("sweeps.cli.quickstart.ensure_pool", lambda *_: pytest.fail("began"))
    tiny_pool.write(here / "s.yaml")
    status, _, said = call(monkeypatch, capsys, *command, "--import", "outside_missing")
    assert status == 2
    (line,) = said.splitlines()
    assert "methods.import: 'outside_missing': no such module" in line
