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
from actors.cluster.planner import Plan
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.experts.recipe import merged, of_task
from actors.experts.requests import Evaluate
from actors.fleet.fleet import Fleet
from actors.fleet.transport import fetched
from actors.pool.pool import open_pool
from actors.pool.vectors_in_memory import flatten, unflatten
from fusion.errors import InputError
from fusion.methods.learned.steps import MicroBatch
from fusion.registry import METHODS, Informed, Learned, LogitSpace, PerTask, Routed, Static
from fusion.task_vectors.sparsify import Trim
from tests.fusion import laws

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def plan_of(replicas, blocks=((0, 4),)):
    return Plan(replicas, len(blocks), tuple(blocks), "cpu", 1, 0.0, 0, (0,) * len(blocks), 0)


PLAN = plan_of(2)


def on_ray(name, vectors, params):
    """Merge in another process, from read-only views of the object store."""

    def work(flat):
        inputs, rest = laws.split(params)
        return merged(unflatten(flat), Recipe(name, rest, task=inputs.task), inputs.statistics)

    remote = fetched(ray.remote(work).options(num_cpus=0.5).remote(ray.put(flatten(vectors))))
    if vectors.arena is None:
        return remote
    for key, tensor in remote.items():
        vectors.arena[key].copy_(tensor)
    return dict(vectors.arena)


@pytest.mark.parametrize("name", laws.STATIC)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_static_laws_on_ray(law, name):
    torch.set_num_threads(1)  # as many as a worker has: products are then summed in the same order
    law(on_ray, name)


@pytest.mark.parametrize("name", laws.LOGIT)
@pytest.mark.parametrize("law", laws.LOGIT_LAWS, ids=lambda law: law.__name__)
def test_logit_laws_on_ray(law, name):
    def fuse(method, embeddings, head, params):
        def work(a, b):
            return METHODS[method].fuse(a.clone(), b, **params)

        return fetched(ray.remote(work).options(num_cpus=0.5).remote(embeddings, head)).clone()

    law(fuse, name)


@pytest.fixture(scope="module")
def parts(tiny_pool, tmp_path_factory, ray_cluster):
    """Pool, data and local experts."""
    os.environ["FUSION_SWEEPS_CACHE"] = str(tmp_path_factory.mktemp("fleet-cache"))
    root = tiny_pool.root
    names = ("lines", "tones", "blobs")
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in names})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in names}
    cache = tmp_path_factory.mktemp("cache")
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], cache)
    embeddings = EmbeddingCache(
        cache / "embeddings", {task: task for task in (*names, "pretrained")}
    )
    local = local_experts(pool, data, embeddings)
    return pool, data, embeddings, local


@pytest.fixture(scope="module")
def fleet(parts):
    pool, data, _, _ = parts
    elsewhere = EmbeddingCache(Path(str(parts[2].root) + "-fleet"), parts[2].identity)
    with Fleet(pool, data, elsewhere, PLAN) as started:
        started.ready(120)
        yield started


RECIPES = [
    Recipe("pretrained"),
    Recipe("experts"),
    *(
        Recipe(name, params)
        for name in METHODS
        if not isinstance(METHODS[name], Learned)
        for params in (
            [{}, {"average": "features"}]
            if isinstance(METHODS[name], LogitSpace)
            else [{}, {"granularity": "sample"}, {"granularity": "cluster", "expert": "tones"}]
            if isinstance(METHODS[name], Routed)
            else [{"examples": 6}]
            if isinstance(METHODS[name], Informed)
            else laws.examples(name, laws.toy(tasks=laws.TASKS))
        )
        if params.keys().isdisjoint({"weights", "task", "experts"})
        and (name == "dawin" or "expert" not in params)
    ),
    Recipe("emr"),
    Recipe("tall_mask", {"threshold": 0.6}),
    Recipe("wise_ft", {"expert": "tones", "alpha": 0.3}),
    Recipe("slerp", {"experts": ["tones", "blobs"], "t": 0.3}),
    Recipe("weighted_average", {"weights": {"lines": 1.0, "tones": 0.5, "blobs": 2.0}}),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_fleet_equals_local_to_the_bit(recipe, fleet, parts):
    local = parts[3]
    torch.set_num_threads(1)  # as many as a replica has: sums are then made in the same order
    ours, theirs = local.evaluate(recipe, "report"), fleet.client.evaluate(recipe, "report")
    assert ours.metrics() == theirs.metrics()
    for task, score in ours.scores.items():
        assert np.array_equal(score.correct, theirs.scores[task].correct)
    if isinstance(METHODS.get(recipe.method), PerTask):
        with pytest.raises(InputError, match="one model a task; there is no single model"):
            fleet.client.merge(recipe)
        recipe = of_task(recipe, "tones")
    if recipe.method == "pretrained" or isinstance(METHODS.get(recipe.method), Static):
        laws.assert_same_bits(fleet.client.merge(recipe), local.merge(recipe))


@pytest.mark.parametrize("name", laws.FITTED)
def test_what_a_replica_fits_is_what_is_fitted_here(name, fleet, parts):
    local = parts[3]
    torch.set_num_threads(1)
    quick = {"epochs": 3} if "epochs" in METHODS[name].parameters else {}
    recipe = Recipe(name, quick)
    ours, chosen = local.fit(recipe)
    assert fleet.client.fit(recipe) == (ours, chosen)
    kept = replace(recipe, learned=ours)
    found = local.evaluate(kept, "report")
    assert fleet.client.evaluate(kept, "report").metrics() == found.metrics()
    with pytest.raises(InputError, match=f"{name}: fuses logits; there is no single model"):
        local.merge(kept)


def test_a_soup_by_its_coding_is_the_mean_of_its_ingredients(fleet, parts):
    local = parts[3]
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


def test_labelled_micro_batches_and_gram_are_the_same_here_and_there(fleet, parts):
    local = parts[3]
    rows = {task: torch.arange(5) for task in local.runner.tasks}
    coding = torch.full((1, 3, 1), 1 / 3)
    micro_batch = MicroBatch(rows, coding, torch.tensor(1.5))
    (ours,) = local.gradients([micro_batch], "select", Trim())
    (theirs,) = fleet.client.gradients([micro_batch], "select", Trim())
    assert ours.losses == theirs.losses
    assert ours.beta == theirs.beta != 0
    assert torch.equal(ours.coding, theirs.coding)
    assert torch.equal(local.gram().total, fleet.client.gram().total)


def test_experts_are_measured_on_their_own_task(parts):
    local = parts[3]
    scores = local.evaluate(Recipe("experts"), "report").scores
    assert list(scores) == ["lines", "tones", "blobs"]
    for task in scores:
        alone = local.evaluate(Recipe("wise_ft", {"expert": task, "alpha": 1.0}), "report")
        assert scores[task].accuracy == alone.scores[task].accuracy


def test_accuracy_and_loss_are_those_of_transformers(parts, tiny_pool):
    """An independent path: transformers' own model and processor, plain PyTorch."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    base = tiny_pool.root / "base"
    model, processor = CLIPModel.from_pretrained(base).eval(), CLIPProcessor.from_pretrained(base)
    score = parts[3].evaluate(Recipe("pretrained"), "report").scores["tones"]
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
    _, data, embeddings, _ = parts
    pool = open_pool(str(tiny_pool.root / "base"), {"tones": str(bad)})
    with (
        pytest.raises(InputError, match=r"model\.safetensors.*post_layernorm.*1 of 32 are NaN"),
        Fleet(pool, data, embeddings, plan_of(1)) as doomed,
    ):
        doomed.ready(60)


@pytest.mark.slow  # test_failures has a fleet of shards that an interrupt closes
def test_a_closed_fleet_leaves_no_actor(parts):
    pool, data, embeddings, _ = parts
    with Fleet(pool, data, embeddings, plan_of(1)) as short:
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
