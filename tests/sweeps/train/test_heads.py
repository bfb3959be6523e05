"""LP-FT: the probe's head, towers tuned under it, and the file that a sweep names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from actors.artifacts.head_file import HeadFacts, check_head, head_facts, read_head, write_head
from actors.checkpoints.checkpoint import content_hash
from actors.cluster.planner import Node, Resources
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.prepare_data import prepare_data
from actors.families.registry import inspect, training_of
from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.dataset import Labelled
from sweeps.planning.prepare import prepare
from sweeps.spec.method import MethodSpec
from sweeps.spec.search_space import Grid
from sweeps.spec.sweep import validate
from sweeps.train import spec as trainspec
from sweeps.train import trial
from sweeps.train.fine_tuning_context import FineTuningContext
from sweeps.train.ingredients import (
    chosen,
    head_file,
    home,
    read_results,
    settle,
)
from sweeps.train.inputs.heads import kinds, probe, scaled
from sweeps.train.pools import by_head, pool_yaml
from sweeps.train.run import contexts

KINDS = ("zero_shot", "linear_probe")


@pytest.fixture(scope="module")
def context(tiny_pool, tmp_path_factory) -> FineTuningContext:
    """One task whose heads are made."""
    folder = tmp_path_factory.mktemp("context")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("FUSION_SWEEPS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    content = {
        "name": "t", "out": str(folder / "out"), "base": str(tiny_pool.root / "base"), "keep": 4,
        "tasks": {"tones": {"dataset": str(tiny_pool.root / "data" / "tones")}},
        "finetune": {"head": {"grid": list(KINDS)}},
    }  # fmt: skip
    (folder / "t.yaml").write_text(yaml.safe_dump(content))
    spec = trainspec.load(folder / "t.yaml")
    task = {"tones": open_task(TaskSource("tones", spec.tasks["tones"].dataset))}
    base, splits = inspect(spec.base, "base"), Splits()
    data = prepare_data(base, task, splits, ("fit", "select", "report"), folder / "cache")
    out = folder / "out"
    facts = HeadFacts("tones", "zero_shot", task["tones"].classnames, content_hash(base), "zs")
    write_head(head_file(out, "tones", "zero_shot"), read_head(data["tones"].head), facts)
    matrix, strength, _ = probe(base.folder, data["tones"], folder / "cache")
    facts = replace(facts, kind="linear_probe", identity="lp", C=strength)
    write_head(head_file(out, "tones", "linear_probe"), matrix, facts)
    starts, training = {"tones": base}, training_of(base)
    about = contexts(spec, starts, task, splits)
    found = FineTuningContext(spec, base, starts, data, about, out, training)
    monkeypatch.undo()
    return found


def fine_tuned(context, monkeypatch, key, **params):
    """The result of one trial of this key."""
    given = {"epochs": 2.0, "batch_size": 16, "learning_rate": 1e-3, **params}
    what = {"task": "tones", "trial_key": key, "seed": 1, "params": given}
    monkeypatch.setattr(trial.tune, "report", lambda _: None)
    trial.fine_tune_trial(
        what, context.folders, context.data, context.contexts, context.out, "cpu", False
    )
    (found,) = [each for each in read_results(context.out, "tones") if each.key == key]
    return found


def test_the_probe_s_head_is_a_head_like_others(context):
    data = context.data["tones"]
    head = read_head(head_file(context.out, "tones", "linear_probe"))
    words = read_head(data.head)
    assert head.shape == words.shape
    assert 0 < float(head.norm(dim=1).mean()) <= float(words.norm(dim=1).mean()) * (1 + 1e-6)
    scores = trial.measured(context.base.folder, data, context.base.folder, ["fit"], "cpu")
    under = replace(data, head=head_file(context.out, "tones", "linear_probe"))
    better = trial.measured(context.base.folder, under, context.base.folder, ["fit"], "cpu")
    assert better["fit"] >= scores["fit"]
    assert better["fit"] > 0.6  # of three classes


def test_the_scale_is_that_of_the_smallest_loss_and_bounded():
    draw = torch.Generator().manual_seed(0)
    z, labels = torch.randn(60, 4, generator=draw), torch.arange(60) % 3
    head, words = torch.randn(3, 4, generator=draw), 5 * torch.eye(4)[:3]
    select = Labelled(z, labels, "select")
    found = scaled(1e-6 * head, words, select)
    torch.testing.assert_close(found, scaled(head, words, select))  # its length plays no part
    unit = (found / found.norm()).double()

    def loss(length: float) -> float:
        z_ = logits(z.double(), length * unit)
        return float(torch.nn.functional.cross_entropy(z_, labels))

    length = float(found.norm())
    assert loss(length) <= min(loss(0.97 * length), loss(1.03 * length))
    right = Labelled(torch.eye(4)[labels], labels, "select")  # no length is long enough
    torch.testing.assert_close(scaled(1e-6 * torch.eye(4)[:3], words, right), words)


def test_what_is_tuned_under_a_head_carries_it(context, monkeypatch, tiny_pool, tmp_path):
    results = [fine_tuned(context, monkeypatch, kind, head=kind, ema=0.5) for kind in KINDS]
    words, probed = (result.made[0] for result in results)
    assert (words["head"], probed["head"]) == ("zs", "lp")
    assert words["sha256"] != probed["sha256"]
    # Killed after the weights were written, before the result: nothing else comes out.
    place = context.out / "trained/linear_probe/expert"
    (place / "head.safetensors").unlink()
    head_file(context.out, "tones", "linear_probe").rename(
        context.out / "gone"
    )  # the trial has its own
    again = fine_tuned(context, monkeypatch, "linear_probe", head="linear_probe", ema=0.5)
    assert again.made == results[1].made
    (context.out / "gone").rename(head_file(context.out, "tones", "linear_probe"))
    own = head_file(context.out, "tones", "linear_probe").read_bytes()
    assert (place / "head.safetensors").read_bytes() == own
    assert (place.with_name("expert-ema") / "head.safetensors").read_bytes() == own
    there = trial.measured(
        context.base.folder, context.data["tones"], place, ["select", "report"], "cpu"
    )
    assert there == {role: probed[role] for role in ("select", "report")}

    kept = chosen(results, 4)
    about = {"base": content_hash(context.base), "defaults": dict(context.defaults)}
    settle(context.out, results, 4, about)
    assert len(kept) == 4
    for each in kept:
        folder = home(context.out, each, 4)
        facts, _ = head_facts(folder / "head.safetensors")
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["head"]["kind"] == facts.kind == each.tuned_under
        assert recipe["head"]["identity"] == facts.identity == each.head
        assert recipe["head"]["classnames"] == ["dark", "grey", "light"]
        assert recipe["params"]["head"] == facts.kind
    pools = by_head({"tones": kept})
    assert [{each.tuned_under for each in pool["tones"]} for pool in pools] == [
        {kept[0].tuned_under}, set(KINDS) - {kept[0].tuned_under}]  # fmt: skip

    # Each of the two pools can be swept as it is; both together cannot.
    given = {"tones": {"dataset": str(tiny_pool.root / "data/tones")}}
    machine = Resources((Node(2, 0, 8 << 30),))
    contents = []
    for pool in pools:
        text = pool_yaml(context.base.folder, pool, context.out, 4, given, {})
        contents.append(yaml.safe_load(text))
        spec = {"name": "x", "methods": {"uniform_soup": {}}, **contents[-1]}
        prepared = prepare(validate(spec, "s.yaml"), tmp_path, machine)
        is_probe = pool["tones"][0].tuned_under == "linear_probe"
        assert ("head" in contents[-1]["tasks"]["tones"]) == is_probe == bool(prepared.heads)
    spec["pool"]["experts"] |= contents[0]["pool"]["experts"]
    with pytest.raises(InputError, match="both of task 'tones', tuned under different heads"):
        prepare(validate(spec, "s.yaml"), tmp_path, machine)


def test_the_head_decides_numbers_and_is_part_of_what_they_depend_on(context, tiny_pool, tmp_path):
    machine = Resources((Node(2, 0, 8 << 30),))
    spec = tiny_pool.spec()
    plain = prepare(validate(spec, "s"), tmp_path, machine).context()
    spec["tasks"]["tones"]["head"] = str(head_file(context.out, "tones", "linear_probe"))
    under = prepare(validate(spec, "s"), tmp_path, machine)
    assert under.context() != plain
    assert list(under.heads) == ["tones"]
    tasks = under.tasks
    data = prepare_data(under.pool.base, tasks, under.splits, ["report"], tmp_path / "cache")
    wanted = head_file(context.out, "tones", "linear_probe").read_bytes()
    assert data["tones"].head.read_bytes() == wanted
    assert data["lines"].head.read_bytes() != wanted


def test_without_a_probe_nothing_is_tuned_under_one(context, monkeypatch):
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(trial.tune, "report", said.append)
    what = {"task": "tones", "trial_key": "k", "seed": 1, "params": {"head": "linear_probe"}}
    out = context.out / "bare"
    trial.fine_tune_trial(what, context.folders, context.data, context.contexts, out, "cpu", False)
    assert [report["reason"] for report in said] == [
        "head: 'linear_probe': no probe is given; it is fitted beforehand"
    ]
    assert read_results(out, "tones") == []


def test_which_heads_a_search_may_choose():
    assert kinds(MethodSpec()) == ["zero_shot"]
    assert kinds(MethodSpec(params={"head": "linear_probe"})) == ["linear_probe"]
    both = MethodSpec(params={"head": Grid(("linear_probe", "zero_shot"))})
    assert kinds(both) == list(KINDS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finetune": {"head": "lp"}}, "finetune.head: 'lp': one of 'zero_shot', 'linear_probe'"),
        ({"finetune": {"probe": 1}}, "unknown parameter 'probe'"),
        ({"tasks": {"t": {"dataset": "d", "head": "h"}}}, "tasks.t.head: 'h': finetune.head says"),
    ],
)
def test_a_training_file_that_will_not_do(changes, expected, tmp_path):
    content = {"name": "t", "out": "o", "base": "b", "tasks": {"t": {"dataset": "d"}}} | changes
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        trainspec.load(tmp_path / "t.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_over_heads(tiny_pool, tmp_path, capsys):
    """`sweeps train` end to end: both heads, both pools, nothing made twice."""
    import sys

    from rich.console import Console

    from sweeps.train.run import train

    out = tmp_path / "out"
    content = {
        "name": "t", "out": str(out), "base": str(tiny_pool.root / "base"), "keep": "all",
        "tasks": {t: {"dataset": str(tiny_pool.root / "data" / t)} for t in ("lines", "tones")},
        "finetune": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3,
                     "head": {"grid": list(KINDS)}},
        "shifts": {"noise": {"corruption": "gaussian_noise"}},
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    spec = trainspec.load(tmp_path / "t.yaml")
    assert train(spec, Console(file=sys.stdout, width=300)) == []
    heads = {path: path.stat().st_mtime_ns for path in out.glob("heads/*/*")}
    assert len(heads) == 4
    assert train(spec, Console(file=sys.stdout, width=300)) == []
    assert {path: path.stat().st_mtime_ns for path in heads} == heads
    shown = capsys.readouterr().out
    for task in ("lines", "tones"):
        file = head_file(out, task, "linear_probe")
        named = ("b", content_hash(inspect(spec.base, "b")))
        check_head(file, "x", named, 16, head_facts(file)[0].classnames)
        assert f"head  tasks.{task}.head: {file}" in shown
    for folder in out.glob("ingredients/*/*"):
        scores = json.loads((folder / "scores.json").read_text())
        assert set(scores["shifts"]) == {"noise"}
    assert (out / "pool-other-heads.yaml").exists() or by_kind(out) == 1


def by_kind(out: Path) -> int:
    """How many kinds of heads each task kept, at most."""
    found: dict[str, set[str]] = {}
    for folder in out.glob("ingredients/*/*"):
        kind = yaml.safe_load((folder / "recipe.yaml").read_text())["head"]["kind"]
        found.setdefault(folder.parent.name, set()).add(kind)
    return max(map(len, found.values()))
