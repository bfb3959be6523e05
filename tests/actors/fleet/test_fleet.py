"""The fleet is the local experts, elsewhere: same laws, same bits, through failures."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from actors.artifacts.coding_file import dump_coding
from actors.artifacts.recipe import Recipe
from actors.experts.recipe import merged
from actors.experts.requests import Evaluate
from actors.fleet.fleet import Fleet
from actors.fleet.transport import fetched
from actors.pool.pool import open_pool
from actors.pool.vectors_in_memory import flatten, unflatten
from fusion.errors import InputError
from fusion.registry import METHODS
from tests.actors.fleet.sharded import plan_of
from tests.actors.laws.cases import CASES, Caller, assert_same
from tests.fusion import laws

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("name", laws.STATIC)
def test_static_merges_in_another_process(name):
    """From read-only views of the object store: the same bits, so that every law of
    `tests/fusion/laws.py` holds there as it does here."""
    torch.set_num_threads(1)  # as many as a worker has: products are then summed in the same order
    given = [laws.toy(schema) for schema in laws.SCHEMAS]
    asked = [[laws.split(each) for each in laws.examples(name, vectors)] for vectors in given]

    def work(*flats):
        return [
            [
                merged(unflatten(flat), Recipe(name, rest, task=inputs.task), inputs.statistics)
                for inputs, rest in each
            ]
            for flat, each in zip(flats, asked, strict=True)
        ]

    remote = ray.remote(work).options(num_cpus=0.5)
    found = fetched(remote.remote(*(ray.put(flatten(vectors)) for vectors in given)))
    for vectors, each, models in zip(given, asked, found, strict=True):
        for (inputs, rest), model in zip(each, models, strict=True):
            laws.assert_same_bits(model, METHODS[name].merge(vectors, inputs, **rest))


@pytest.mark.parametrize("name", laws.LOGIT)
def test_logits_are_fused_in_another_process(name):
    given = [laws.toy_embeddings(dtype=dtype) for dtype in (torch.float16, torch.float64)]

    def work(*pairs):
        return [METHODS[name].fuse(*pair) for pair in pairs]

    found = fetched(ray.remote(work).options(num_cpus=0.5).remote(*given))
    for pair, logits in zip(given, found, strict=True):
        assert torch.equal(logits, METHODS[name].fuse(*pair))


@pytest.fixture(scope="module")
def local(parts):
    return parts.local()


@pytest.fixture(scope="module")
def fleet(parts, ray_cluster):
    with Fleet(*parts.args, plan_of(2)) as started:
        started.ready(120)
        yield started


HERE = ("learned", "in-model", "gradients by a form")
"""Kinds of cases that are not tried on two replicas: steps of learning are gradients, or are tried
in `test_sharded_fleet.py`; the form is set in this process."""


@pytest.mark.parametrize("case", [case for case in CASES if case.kind not in HERE], ids=str)
def test_same_bits(case, fleet, parts):
    """The law of `tests/actors/laws`, on processes."""
    wanted = case.observe(parts, Caller(lambda: parts.local(f"{case} wanted")))
    assert_same(case.observe(parts, Caller(lambda: fleet.client)), wanted)


def test_evaluations_are_scored_as_here(fleet, local):
    for recipe in (Recipe("experts"), Recipe("ties", {"density": 0.3}), Recipe("emr")):
        ours, theirs = local.evaluate(recipe, "report"), fleet.client.evaluate(recipe, "report")
        assert ours.metrics() == theirs.metrics()
        for task, score in ours.scores.items():
            assert np.array_equal(score.correct, theirs.scores[task].correct)


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe("emr"), "emr: one model a task"),
        (Recipe("dawin"), "dawin: one model a sample"),
        (Recipe("tip_adapter"), "tip_adapter: fuses logits"),
    ],
    ids=str,
)
def test_there_is_no_single_model(recipe, why, fleet, local):
    for who in (local, fleet.client):
        with pytest.raises(InputError, match=f"{why}; there is no single model"):
            who.merge(recipe)


def test_a_soup_by_its_coding_is_the_mean_of_its_ingredients(fleet, local):
    tasks, groups = local.runner.tasks, local.runner.pipeline.groups
    half = dump_coding(torch.tensor([0.5, 0.0, 0.5]).view(1, 3, 1), tasks, groups)
    recipe = Recipe("greedy_soup", {}, half)
    named = Recipe("uniform_soup", {"ingredients": [tasks[0], tasks[2]]})
    laws.assert_same_bits(local.merge(recipe), local.merge(named))
    both = fleet.client.evaluate_all([recipe, named], "report")
    assert both[0].metrics() == both[1].metrics() == local.evaluate(named, "report").metrics()
    # One that is a single ingredient is read off its cached embeddings: the same logits.
    alone = dump_coding(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1), tasks, groups)
    merged_ = Recipe("wise_ft", {"expert": tasks[1], "alpha": 1.0})
    assert (
        local.evaluate(replace(recipe, learned=alone), "report").metrics()
        == local.evaluate(merged_, "report").metrics()
    )


def test_experts_are_measured_on_their_own_task(local):
    scores = local.evaluate(Recipe("experts"), "report").scores
    assert list(scores) == ["lines", "tones", "blobs"]
    for task in scores:
        alone = local.evaluate(Recipe("wise_ft", {"expert": task, "alpha": 1.0}), "report")
        assert scores[task].accuracy == alone.scores[task].accuracy


def test_accuracy_and_loss_are_those_of_transformers(local, tiny_pool):
    """An independent path: transformers' own model and processor, plain PyTorch."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    base = tiny_pool.root / "base"
    model, processor = CLIPModel.from_pretrained(base).eval(), CLIPProcessor.from_pretrained(base)
    score = local.evaluate(Recipe("pretrained"), "report").scores["tones"]
    rows = pq.read_table(tiny_pool.root / "data/tones/test.parquet").to_pylist()
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    labels = torch.tensor([row["label"] for row in rows])
    words = [f"a photo of a {name}." for name in ("dark", "grey", "light")]
    inputs = processor(text=words, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert np.array_equal(score.correct, (logits.argmax(1) == labels).numpy())
    expected = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    assert score.nll == pytest.approx(expected, abs=1e-4)


def test_a_killed_replica_comes_back_and_the_call_is_run_again(fleet):
    before = fleet.client.evaluate(Recipe("ties"), "report").metrics()
    pids = ray.get([replica.pid.remote() for replica in fleet.replicas])
    refs = [fleet.client.submit(Evaluate(Recipe("ties"), "report")) for _ in range(12)]
    time.sleep(0.05)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [fetched(ref).metrics() for ref in refs] == [before] * 12
    assert set(ray.get([r.pid.remote() for r in fleet.replicas])).isdisjoint(pids)


def test_what_a_replica_refuses_arrives_as_itself(fleet):
    with pytest.raises(InputError, match=r"ties: density: 2; float in \[0, 1\] allowed"):
        fleet.client.evaluate(Recipe("ties", {"density": 2}), "select")
    with pytest.raises(InputError, match="unknown method 'tys'; did you mean 'ties'"):
        fleet.client.evaluate(Recipe("tys"), "select")


def test_weights_with_nan_are_refused_before_anything_runs(parts, tiny_pool, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(tiny_pool.root / "experts" / "tones", bad)
    state = load_file(bad / "model.safetensors")
    key = next(name for name in state if name.endswith("post_layernorm.weight"))
    state[key][3] = float("nan")
    save_file(state, bad / "model.safetensors")
    _, data, embeddings = parts.args
    pool = open_pool(str(tiny_pool.root / "base"), {"tones": str(bad)})
    with (
        pytest.raises(InputError, match=r"model\.safetensors.*post_layernorm.*1 of 32 are NaN"),
        Fleet(pool, data, embeddings, plan_of(1)) as doomed,
    ):
        doomed.ready(60)


@pytest.mark.slow  # test_failures has a fleet of shards that an interrupt closes
def test_a_closed_fleet_leaves_no_actor(parts):
    with Fleet(*parts.args, plan_of(1)) as short:
        short.ready(60)
        pid = ray.get(short.replicas[0].pid.remote())
    deadline = time.time() + 20
    calls = (short.replicas[0].pid.remote, lambda: short.dispatcher.repeated_calls.remote())
    while Path(f"/proc/{pid}").exists() or not all(map(dead, calls)):
        assert time.time() < deadline, "something of it lives on"
        time.sleep(0.1)


def dead(call) -> bool:
    try:
        ray.get(call(), timeout=2)
    except ray.exceptions.RayActorError:
        return True
    except ray.exceptions.GetTimeoutError:
        pass
    return False
