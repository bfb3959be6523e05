"""Population-based training: intervals, what may change, and a population that is killed."""

import json
import math
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from actors.artifacts.head_file import read_head
from actors.checkpoints.checkpoint import content_hash
from actors.families.clip.fine_tune import FineTuning, fine_tune
from actors.families.clip.training import STEPWISE
from actors.families.images.rows import images_of
from actors.families.registry import inspect
from fusion.errors import InputError
from sweeps.results.ingredient_recipes import recipe_of
from sweeps.train.ingredients import read_results
from sweeps.train.population import population_member
from sweeps.train.population.population import Population, steps_of
from sweeps.train.population.population_member import MemberContext, ended, grown
from sweeps.train.population.population_spec import perturbed
from tests.actors.training.fine_tuning import image_search
from tests.sweeps.train.test_run import command, context, finished, hashes, load, spec

__all__ = ["context"]  # a fixture

RATES = {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "mixup": {"choice": [0.0, 0.2, 0.4]}}
SEARCH = {**RATES, "trials": 4, "scheduler": "pbt"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"swa": {"choice": [0.1, 0.2]}}, "finetune.swa: {'choice': [0.1, 0.2]}: one value needed"),
        ({"ema": {"grid": [0.0, 0.9]}}, "finetune.ema: {'grid': [0.0, 0.9]}: one value needed"),
        ({"trials": 1}, "finetune.trials: 1: a population of at least 2 needed"),
        ({"searcher": "tpe"}, "finetune.searcher: 'tpe': a population chooses by itself"),
        ({"learning_rate": 1e-3, "mixup": 0.0, "seed": {"grid": [0, 1]}, "trials": None},
         "finetune.scheduler: 'pbt': nothing to change on the way"),
    ],
)  # fmt: skip
def test_what_a_population_cannot_be(changes, expected, tiny_pool, tmp_path):
    given = {key: value for key, value in {**SEARCH, **changes}.items() if value is not None}
    with pytest.raises(InputError) as caught:
        load(spec(tiny_pool, tmp_path / "pool", finetune=given), tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changed_values_stay_in_their_spaces_and_depend_on_the_seed_alone():
    entry = image_search({**SEARCH, "seed": {"grid": [0, 1]}})
    assert list(perturbed(entry, STEPWISE)) == ["learning_rate", "mixup"]  # not the seed
    scheduler = Population(entry, 3, "lines", STEPWISE)
    high = {"trial": {"params": {"learning_rate": 1.2e-2, "mixup": 0.2, "epochs": 4}}}
    assert scheduler.bounded(high)["trial"]["params"] == {
        "learning_rate": 1e-2, "mixup": 0.2, "epochs": 4,
    }  # fmt: skip
    before = random.getstate()
    with pytest.raises(RuntimeError, match="time_attr round"):
        scheduler.on_trial_result(None, None, {})  # refused, and the generator is put back
    assert random.getstate() == before


@pytest.fixture
def member_context(context) -> MemberContext:
    folder, task = context.base.folder, context.data["lines"]
    return MemberContext(
        folder, task, context.contexts["lines"], context.out, "cpu", 9, "me"
    )  # 9 steps


def interval(rate: float, member: str = "me") -> dict:
    params = {"epochs": 1, "batch_size": 8, "learning_rate": rate, "ema": 0.5}
    return {"member": member, "seed": 5, "params": params}


OWN = {"params": interval(1e-3)["params"], "seed": 5}


def made(member_context: MemberContext) -> list[str]:
    (result,) = read_results(member_context.out, "lines")
    return [each["sha256"] for each in result.made]


def test_intervals_under_one_rate_are_one_run(member_context, context, monkeypatch):
    """And so they are where states are damaged, gone, or left without their score."""
    assert (member_context.intervals, steps_of(context, "lines")) == (
        8,
        9,
    )  # 2 epochs of 72 images by 16
    chain = [interval(1e-3)] * member_context.intervals
    scores = []
    for n in range(1, member_context.intervals):
        scores.append(grown(member_context, chain[:n])["select"])
        if n == 2:
            member_context.file(chain[:2], ".pt").write_bytes(b"damaged")
        if n == 3:
            member_context.file(chain[:3], ".pt").unlink()
        if n == 4:
            member_context.file(chain[:4], ".json").unlink()
            assert grown(member_context, chain[:4])["select"] == scores[-1]
        there = {int(file.name[0]) for file in member_context.folder.glob("[1-9]*.pt")}
        assert n in there or n == 3
        assert min(there, default=n) >= n - 1  # disk is bounded
    assert (
        ended(member_context, chain, OWN, ["learning_rate"])["select"]
        == read_results(member_context.out, "lines")[0].select
    )
    whole = context.out / "whole"
    images, labels = images_of(member_context.task.rows["fit"])
    given = {**chain[0]["params"], "seed": 5}
    head = read_head(member_context.task.head)
    fine_tune(member_context.start, images, labels, head, whole, FineTuning(**given))
    expected = [
        content_hash(inspect(str(context.out / name), "x")) for name in ("whole", "whole-ema")
    ]
    assert made(member_context) == expected
    (result,) = read_results(member_context.out, "lines")
    assert result.schedule == [{"step": 0, "of": "me", "seed": 5, "learning_rate": 1e-3}]
    monkeypatch.setattr(population_member, "once", None)  # what is there is not trained again
    assert grown(member_context, chain[:3])["select"] == scores[2]
    assert ended(member_context, chain, OWN, ["learning_rate"])["report"] == result.report


def test_a_copy_goes_on_from_the_others_weights_under_its_own_values(member_context, context):
    first, other = [interval(1e-3)] * 7, interval(4e-3, "you")
    chain = [*first, other]
    ended(member_context, chain, OWN, ["learning_rate"])
    (result,) = read_results(member_context.out, "lines")
    assert [part["step"] for part in result.schedule] == [0, 8]  # round(7/8 · 9)
    assert [part["learning_rate"] for part in result.schedule] == [1e-3, 4e-3]
    assert [part["of"] for part in result.schedule] == ["me", "you"]
    base, ends = ({}, {})
    for store, place in ((base, context.base.folder), (ends, member_context.place)):
        from safetensors.torch import load_file

        store.update(load_file(place / "model.safetensors"))
    grown(member_context, first)
    before = torch.load(member_context.file(first, ".pt"), weights_only=True)
    # One step of AdamW with the state before, at the other's rate on the cosine: 4e-3·f(8).
    group = before["optimiser"]["param_groups"][0]
    assert before["step"] == 8
    assert group["initial_lr"] == 1e-3
    name = "embeddings.class_embedding"
    moved = ends[f"vision_model.{name}"] - before["weights"][name]
    assert 0 < float(moved.abs().max()) < 4e-3 * 0.05  # f(8) of 9 steps: 0.03
    assert float(moved.abs().max()) > group["lr"]  # more than the rate that was loaded allows


def test_a_member_that_fails_holds_up_nobody(member_context, context, monkeypatch):
    """It reports NaN with the reason at each round, and leaves no result."""
    told, chains = [], []
    own = {"task": "lines", "trial_key": "me", "seed": 5, "params": interval(1e-3)["params"]}
    stub = SimpleNamespace(
        get_context=lambda: SimpleNamespace(get_trial_name=lambda: "me"),
        get_checkpoint=lambda: None,
        Checkpoint=SimpleNamespace(
            from_directory=lambda at: chains.append(
                json.loads((Path(at) / "chain.json").read_text())
            )
        ),
        report=lambda result, checkpoint=None: told.append(result),
    )
    monkeypatch.setattr(population_member, "tune", stub)
    broken = SimpleNamespace(fine_tune=lambda *_, **__: 1 / 0, options=FineTuning)
    monkeypatch.setattr(population_member, "training_at", lambda _: broken)
    given = (context.folders, context.data, context.contexts, context.out, "cpu")
    population_member.member_trial({"trial": own}, *given, {"me": own}, 9, ["learning_rate"])
    assert [each["round"] for each in told] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert all(math.isnan(each["select"]) for each in told)
    assert {each["reason"] for each in told} == {"ZeroDivisionError: division by zero"}
    assert [each["final"] for each in told] == [False] * 7 + [True]
    assert [len(each["chain"]) for each in chains] == [1, 2, 3, 4, 5, 6, 7]
    assert chains[0]["reason"]  # so that it does not begin anew on another process
    assert read_results(context.out, "lines") == []


def population(tiny_pool, tmp_path, name: str) -> Path:
    search = {"epochs": 6, "batch_size": 8, "ema": 0.9, "trials": 4, "scheduler": "pbt", **RATES}
    changes = {"base": str(tiny_pool.root / "base"), "keep": "all", "finetune": search}
    content = spec(tiny_pool, tmp_path / name, **changes, splits={"val_fraction": 0.4})
    del content["pretrain"], content["tasks"]["tones"]
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_population_that_is_killed_goes_on_to_the_same_bits(tiny_pool, tmp_path):
    """kill -9 in the middle: no interval is trained twice, and members copy the same ones."""
    finished(command(population(tiny_pool, tmp_path, "whole")))
    expected = hashes(tmp_path / "whole")
    out, file = tmp_path / "killed", population(tiny_pool, tmp_path, "killed")
    driver = command(file)
    while len(list(out.glob("trained/population-*/*.json"))) < 11:
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # workers notice that their driver is gone
    before = {path: path.stat().st_mtime_ns for path in out.glob("trained/population-*/*.json")}
    assert len(before) < 32
    finished(command(file))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert hashes(out) == expected
    assert len(expected) == 8
    assert not list(out.glob("trained/population-*/*.pt"))
    sound(out)


def sound(out: Path) -> None:
    """Each round the worst member goes on from the best one's weights, under changed values."""
    intervals = {
        path.stem: json.loads(path.read_text()) for path in out.glob("trained/population-*/*.json")
    }
    rounds = {n: {} for n in range(1, 9)}
    for name, each in intervals.items():
        rounds[int(name[0])][each["member"]] = each
    assert all(len(found) == 4 for found in rounds.values())
    for n in range(2, 9):
        scores = {member: each["select"] for member, each in rounds[n - 1].items()}
        copies = {
            member: intervals[each["before"]]
            for member, each in rounds[n].items()
            if intervals[each["before"]]["member"] != member
        }
        assert len(copies) == 1  # a quarter of four
        for member, each in rounds[n].items():
            if member not in copies:
                assert each["params"] == intervals[each["before"]]["params"]
        ((member, donor),) = copies.items()
        assert scores[member] == min(scores.values())
        assert donor["select"] == max(scores.values())
        old, new = donor["params"], rounds[n][member]["params"]
        assert 1e-4 <= new["learning_rate"] <= 1e-2
        assert new["learning_rate"] != old["learning_rate"] or new["mixup"] != old["mixup"]
        assert {**new, **old} == old
    results = {each.key: each for each in read_results(out, "lines")}
    assert results.keys() == rounds[8].keys()
    for key, each in results.items():
        last = rounds[8][key]
        assert each.schedule[-1]["of"] == key
        assert each.schedule[-1]["learning_rate"] == last["params"]["learning_rate"]
        for folder in (out / "ingredients/lines").glob(f"{key}*"):
            told = yaml.safe_load((folder / "recipe.yaml").read_text())["schedule"]
            assert told == [dict(part) for part in each.schedule]
            assert recipe_of(folder) is None  # it was trained under no one value
    assert any(len({part["of"] for part in each.schedule}) > 1 for each in results.values())
