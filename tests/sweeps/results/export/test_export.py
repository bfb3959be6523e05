"""Every exported kind gives its row's accuracy by the card's code, with transformers alone."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from actors.pool.pool import open_pool
from fusion.errors import InputError
from sweeps.cli.main import app
from sweeps.results import recipe
from sweeps.results.export.code import check_export, code_in, run_code
from sweeps.results.export.from_recipe import export
from tests.sweeps.results.export.made_sweeps import (
    METHOD,
    PARAMS,
    bert_classifier,
    bert_encoder,
    clip,
    clip_of_adapters,
    clip_of_image_files,
    roberta_encoder,
    sweep_of,
    t5,
)

QUICK = (clip_of_image_files, bert_encoder, t5)
"""One kind a family."""

MORE = (clip, clip_of_adapters, bert_classifier, roberta_encoder)


def runs_for_all(root, kinds, tiny_pool):
    """Export a sweep of each kind, and run the cards' codes for all tasks in one process."""
    program = ["import json, os", "found = {}"]
    rows = {}
    for kind in kinds:
        place = root / kind.__name__
        place.mkdir()
        path, row = sweep_of(place, kind(place, tiny_pool))
        out = place / "out"
        assert export(path, out) is None
        modes = {file.stat().st_mode & 0o777 for file in out.glob("*.*")}
        assert modes == {path.stat().st_mode & 0o777}
        code, name = code_in(out)
        program.append(f"os.chdir({str(out)!r})")
        for task in json.loads((out / "tasks.json").read_text()):
            rows[out, task] = row
            of_task = code.replace(f"name, dtype = {name!r}", f"name, dtype = {task!r}")
            key = f"{out}:{task}"
            program.append(of_task.replace("print(right", f"found[{key!r}] = (right"))
    program += [f"json.dump(found, open({str(root / 'found.json')!r}, 'w'))", "print(0)"]
    run_code(root, "\n".join(program))
    found = json.loads((root / "found.json").read_text())
    return {(out, task): (row, found[f"{out}:{task}"]) for (out, task), row in rows.items()}


@pytest.mark.parametrize(
    "kinds", [QUICK, pytest.param(MORE, marks=pytest.mark.slow)], ids=["quick", "more"]
)
def test_the_codes_of_the_cards_give_the_rows_accuracies(kinds, tmp_path, tiny_pool):
    for (out, task), (row, found) in runs_for_all(tmp_path, kinds, tiny_pool).items():
        assert found == row.test[f"acc/{task}"], out
        about = json.loads((out / "tasks.json").read_text())[task]
        assert about["accuracy"] == row.test[f"acc/{task}"]
        assert tuple(about["accuracy_ci95"]) == row.test_ci95[f"acc/{task}"]
        card = ModelCard.load(out / "README.md")
        assert card.data.library_name == "transformers"
        measured = {each.dataset_name: each.metric_value for each in card.data.eval_results}
        assert measured[task] == row.test[f"acc/{task}"]
        assert yaml.safe_dump(PARAMS).strip() in card.text


def test_a_check_compares_with_the_row(tmp_path, tiny_pool):
    content = clip(tmp_path, tiny_pool)
    del content["tasks"]["lines"], content["tasks"]["blobs"]
    path, _ = sweep_of(tmp_path, content)
    done = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "out"), "--check"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[:5] == [
        "loading torch …",
        "reading base and experts to check that they are unchanged …",
        "reading where the tasks' data are …",
        "merging, writing the folder …",
        str(tmp_path / "out"),
    ]
    assert "with transformers alone, equal to the row" in done.output.replace("\n", " ")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    code = "class torch: float32 = 0\nname, dtype = 'tones', torch.float32\n"
    accuracy = tasks["tones"]["accuracy"] - 2 / 60
    card = f"```python\n{code}print({accuracy!r})\n```\n"
    (tmp_path / "out" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"by the card's code, .* in the row: 2 of 60 rows differ"):
        check_export(tmp_path / "out")
    card = "```python\nname, dtype = 'tones', torch.float32\n```\n"
    (tmp_path / "out" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"README\.md: its code fails: NameError"):
        check_export(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("no code")
    with pytest.raises(InputError, match=r"README\.md: no code that loads the model"):
        check_export(tmp_path / "out")


def test_code_of_a_card_cannot_import_this_package(tmp_path):
    with pytest.raises(InputError, match="ModuleNotFoundError: import of fusion halted"):
        run_code(tmp_path, "import fusion")


def test_a_row_that_is_no_single_model_names_rows_that_are(tmp_path, tiny_pool):
    path, _ = sweep_of(tmp_path, clip(tmp_path, tiny_pool))
    pool = open_pool(**{k: tiny_pool.spec()["pool"][k] for k in ("base", "experts")})
    other = recipe.write(path.parent, "ensemble", pool, {}, "made", {})
    with pytest.raises(InputError, match=r"can be exported, best first: task_arithmetic\.yaml$"):
        export(other, tmp_path / "out")


def test_without_its_sweep_a_recipe_is_exported_without_tasks(tmp_path, tiny_pool):
    pool = open_pool(**{k: tiny_pool.spec()["pool"][k] for k in ("base", "experts")})
    path = recipe.write(tmp_path / "alone", METHOD, pool, PARAMS, "made", {})
    assert "no tasks, heads and accuracies" in str(export(path, tmp_path / "out"))
    assert not (tmp_path / "out" / "tasks.json").exists()
    assert "```python" not in (tmp_path / "out" / "README.md").read_text()
