"""Files of the benchmark of real texts are valid, and its tables are read off comparisons."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.sweeps import real_text
from sweeps.spec.sweep import validate
from sweeps.train import spec as trainspec


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real_text, "minilm", lambda: tmp_path / "minilm")
    real_text.BASE.mkdir(parents=True)
    about = {"model_type": "bert", "architectures": ["BertModel"]}
    (real_text.BASE / "config.json").write_text(json.dumps(about))


def test_training_files_are_valid(tmp_path: Path) -> None:
    for given in (real_text.experts_spec(), real_text.ingredients_spec()):
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(given))
        assert trainspec.load(tmp_path / "t.yaml").finetune.params["learning_rate"]


def test_the_sweep_over_experts_has_one_unseen_task(tmp_path: Path) -> None:
    spec = validate(real_text.sweep_spec(), "s.yaml")
    assert spec.unseen == (real_text.UNSEEN,)
    assert len(spec.methods) >= 20


def test_the_sweep_over_runs_names_the_best_of_them(tmp_path: Path) -> None:
    experts = {}
    for name, score in (("run_1", 0.5), ("run_2", 0.7), ("run_3", 0.6)):
        experts[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({"select": score}))
    written = {
        "pool": {"base": str(tmp_path / "start"), "experts": experts},
        "tasks": real_text.datasets([real_text.SOUP_TASK]),
        "splits": real_text.SPLITS,
    }
    real_text.SOUP_POOL.mkdir(parents=True)
    (real_text.SOUP_POOL / "pool.yaml").write_text(yaml.safe_dump(written))
    spec = validate(real_text.soup_spec(), "s.yaml")
    assert spec.methods["wise_ft"].params["expert"] == "run_2"
    assert spec.unseen == ()
    assert set(spec.shifts) == set(real_text.SHIFTS)


ROWS = [
    {"method": "ties", "val": {"acc/mean": 0.5}, "test": {"acc/mean": 0.4, "acc/seen": 0.6}},
    {
        "method": "average",
        "val": {"acc/mean": 0.75},
        "test": {"acc/mean": 0.5, "acc/seen": 0.7, f"acc/{real_text.UNSEEN}": 0.25},
        "shifts": {name: {"acc/mean": 0.125 * at} for at, name in enumerate(real_text.SHIFTS)},
    },
]


def written(name: str, rows: list[dict[str, object]]) -> Path:
    folder = Path("outputs", name)
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps({"rows": rows}))
    return folder


def test_tables_of_the_unseen_task_and_of_shifts() -> None:
    assert real_text.unseen(written("a", ROWS))[2:] == [
        "| ties | 60.0 | – |",
        "| average | 70.0 | 25.0 |",
    ]
    assert real_text.shifted(written("b", ROWS[1:]))[2:] == [
        "| average | 50.0 | 0.0 | 12.5 | 25.0 |"
    ]


def test_the_row_that_is_exported_is_the_best_on_select() -> None:
    written("a", ROWS)
    assert real_text.single("a", ("ties", "average"))["method"] == "average"
    assert real_text.single("a", ("ties",))["method"] == "ties"
