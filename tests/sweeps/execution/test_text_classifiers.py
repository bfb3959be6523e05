"""Sweeps over text classifiers as a user runs them: soups of one task, and experts of several."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml

from tests.sweeps.program import ONE, comparison, in_process
from tests.tiny_bert import WORDS, Models, make_models, write_texts, write_tokenizer

CLASSES = {"film": ("good", "bad", "fine"), "play": ("good", "bad")}
RUNS = ("run_0", "run_1", "run_2")
STEPS = {"steps": 2, "batch_size": 4}
SOUPS = {
    "greedy_soup": {},
    "learned_soup": STEPS,
    "wise_ft": {"expert": "run_1", "alpha": {"grid": [0.0, 0.5]}},
    "task_arithmetic": {"scale": {"grid": [0.2, 0.4]}},
    "greedy_ensemble": {},
}
EXPERTS = {
    "task_arithmetic": {"scale": {"grid": [0.3, 0.6]}},
    "ties": {},
    "regmean": {"examples": 8},
    "fisher": {"examples": 8, "batch_size": 4},
    "adamerging": STEPS,
    "wemoe": STEPS,
    "dawin": {},
    "dawe": STEPS,
    "linear_probe": {},
    "greedy_ensemble": {"average": "probabilities"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def bert(root: Path) -> Models:
    return make_models(root)["bert"]


def written(root: Path, name: str, content: dict) -> None:
    (root / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **content}, sort_keys=False))


@pytest.fixture(scope="module")
def soups(root: Path, bert: Models) -> Path:
    """A sweep file of ingredients of one task, whose classifiers are fused."""
    write_texts(root / "data" / "film", CLASSES["film"], 1)
    named = dict(enumerate(CLASSES["film"]))
    base = bert.write(root / "whole", id2label=named)
    runs = {run: str(bert.write(root / run, at + 1, id2label=named)) for at, run in enumerate(RUNS)}
    written(
        root,
        "soups",
        {
            "pool": {"base": str(base), "experts": runs},
            "tasks": {"film": {"dataset": str(root / "data" / "film")}},
            "methods": SOUPS,
        },
    )
    return root


@pytest.fixture(scope="module")
def experts(root: Path, bert: Models, soups: Path) -> Path:
    """A sweep file of experts of two tasks, each with a classifier of its own."""
    write_texts(root / "data" / "play", CLASSES["play"], 2, pairs=True)
    base = bert.write(root / "encoder", encoder=True)
    members = {
        task: str(bert.write(root / f"expert-{task}", at + 7, classes=len(names)))
        for at, (task, names) in enumerate(CLASSES.items())
    }
    written(
        root,
        "experts",
        {
            "pool": {"base": str(base), "experts": members},
            "tasks": {task: {"dataset": str(root / "data" / task)} for task in CLASSES},
            "methods": EXPERTS,
        },
    )
    return root


def test_sweeps_are_planned(experts: Path) -> None:
    for name in ("soups", "experts"):
        done = in_process("plan", f"{name}.yaml", cwd=experts)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "up to 20 tokens" in done.stdout


def refusal(root: Path, **changes: dict) -> str:
    """What `sweeps plan` says of the sweep file of experts with changes."""
    content = yaml.safe_load((root / "experts.yaml").read_text())
    written(root, "refused", {**content, **changes})
    done = in_process("plan", "refused.yaml", cwd=root)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f", "clip_adapter", "cafo"])
def test_methods_with_a_cosine_head_are_refused(name: str, experts: Path) -> None:
    assert refusal(experts, methods={name: {}}) == (
        f"methods.{name}: needs cosine_head, which models of the family 'bert' do not have"
    )


def test_wise_ft_of_a_head_is_refused_with_the_reason(experts: Path) -> None:
    assert refusal(experts, methods={"wise_ft_linear": {}}) == (
        "methods.wise_ft_linear: needs cosine_head, which models of the family 'bert' do not have:"
        " its α = 0 is a zero-shot head; wise_ft interpolates whole models"
    )


def test_corruptions_of_images_are_refused(experts: Path) -> None:
    assert refusal(experts, shifts={"noise": {"corruption": "contrast"}}) == (
        "shifts.noise: corruption: 'contrast': of images; the pool's models read texts: one of"
        " typos, word_drop allowed"
    )


def test_a_tokenizer_that_differs_is_refused(experts: Path, bert: Models) -> None:
    other = bert.write(experts / "other", 3, classes=2)
    write_tokenizer(other, "bert", (WORDS[0], "odd", *WORDS[2:]))
    members = {"film": str(experts / "expert-film"), "play": str(other)}
    line = refusal(experts, pool={"base": str(experts / "encoder"), "experts": members})
    assert line.startswith("pool.experts.play: tokenizer: token 6 is 'odd', in the base 'bad'; 17")
    assert "all texts are prepared as the base's file says" in line


def test_texts_under_shift_are_planned(experts: Path) -> None:
    content = yaml.safe_load((experts / "experts.yaml").read_text())
    shifts = {
        "typos": {"corruption": "typos", "severity": 3},
        "other": {"dataset": str(write_texts(experts / "data" / "more", CLASSES["film"], 9)),
                  "task": "film"},
    }  # fmt: skip
    written(experts, "shifted", {**content, "shifts": shifts, "adapt_on_shift": "typos"})
    done = in_process("plan", "shifted.yaml", cwd=experts)
    assert done.returncode == 0, done.stderr
    # The report rows of two tasks and their fit splits, whole; and the other set's report rows.
    assert "144 more texts: 16.7 kB of token cache" in done.stdout


@pytest.mark.parametrize("name", ["tip_adapter", "linear_probe"])
def test_methods_that_need_embeddings_are_refused_of_fused_classifiers(
    name: str, soups: Path
) -> None:
    content = yaml.safe_load((soups / "soups.yaml").read_text())
    written(soups, "refused", {**content, "methods": {name: {}}})
    done = in_process("plan", "refused.yaml", cwd=soups)
    assert done.returncode == 2
    assert f"methods.{name}: needs" in done.stderr
    assert "the family 'bert' do not have" in done.stderr


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_soups_of_classifiers(soups: Path, ray_cluster: None) -> None:
    done = in_process("run", "soups.yaml", *ONE, cwd=soups)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in comparison(soups / "outputs/soups")["rows"]}
    assert rows.keys() >= {*SOUPS, "pretrained", "uniform_soup", "best_single", "ensemble"}
    done = in_process("export", "outputs/soups/recipes/uniform_soup.yaml", "soup", cwd=soups)
    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    members = [AutoModelForSequenceClassification.from_pretrained(soups / run) for run in RUNS]
    soup = AutoModelForSequenceClassification.from_pretrained(soups / "soup")
    assert soup.config.id2label == dict(enumerate(CLASSES["film"]))
    for name, value in soup.state_dict().items():
        mean = sum(member.state_dict()[name].double() for member in members) / len(members)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    ids = AutoTokenizer.from_pretrained(soups / "soup")("the film was good")["input_ids"]
    assert len(ids) == 6


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_experts_of_several_tasks_keep_their_classifiers(experts: Path, ray_cluster: None) -> None:
    done = in_process("run", "experts.yaml", *ONE, cwd=experts)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in comparison(experts / "outputs/experts")["rows"]}
    assert rows.keys() >= {*EXPERTS, "pretrained", "experts"}
