"""A second model family runs from its own folder: registered here, named nowhere else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from actors.artifacts.recipe import Recipe
from actors.cluster.planner import Node, Resources
from actors.data.task import Splits, TaskSource, open_task
from actors.data.task_rows import Cuts
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.families import registry
from actors.families.protocol import check_untied
from actors.gate_features.extractor import open_extractor
from actors.gate_features.feature_cache import open_features, prepare_features
from actors.pool.pool import open_pool, task_vectors
from actors.shards.messages import Batch, Weights
from actors.shards.pipeline import LocalLink, Pipeline
from actors.shards.resident_model import ResidentModel
from actors.shards.shard import Shard
from fusion.errors import InputError
from fusion.logits.head import LinearHead
from fusion.methods.learned.steps import MicroBatch
from fusion.task_vectors.sparsify import Trim
from sweeps.planning.prepare import prepare
from sweeps.results import recipe as recipes
from sweeps.results.export.from_recipe import export
from sweeps.spec.sweep import SweepSpec
from tests.toy_family import TABLE, Toy, write_model, write_task

TASKS = ("verbs", "nouns")
MACHINE = Resources((Node(2, 0, 8 << 30),))
CUTS = [[(0, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]]


@pytest.fixture(autouse=True)
def family(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))
    registry.register(Toy())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    base = write_model(root / "base", 0)
    for seed, task in enumerate(TASKS, 1):
        write_model(root / task, seed, base)
        write_task(root / "data" / task, 2 + seed, seed)
    return root


@pytest.fixture
def pool(folders):
    return open_pool(str(folders / "base"), {task: str(folders / task) for task in TASKS})


@pytest.fixture
def data(pool, folders, tmp_path):
    tasks = {t: open_task(TaskSource(t, str(folders / "data" / t), image="text")) for t in TASKS}
    return prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), tmp_path)


@pytest.fixture
def experts(pool, data, tmp_path):
    cache = embedding_cache(tmp_path, pool, "cpu", {})
    return lambda cut: local_experts(pool, data, cache, blocks=cut)


def batch_of(data, rows=4):
    return Batch(
        tuple((t, data[t].rows["fit"].file, data[t].rows["fit"].indices[:rows]) for t in TASKS)
    )


def shards_of(pool, cut, dtype=torch.float64):
    vectors = task_vectors(pool)
    vectors = replace(
        vectors,
        base={k: v.to(dtype) for k, v in vectors.base.items()},
        deltas={k: v.to(dtype) for k, v in vectors.deltas.items()},
    )
    found = []
    for block in cut:
        names = registry.family_in(pool.base).segments(pool.base)[slice(*block)]
        held = {name for link in names for name in link.names.values()}
        part = vectors.restrict([name for name in vectors.base if name in held])
        heads = {t: 5 * torch.eye(12, dtype=dtype)[: 3 + i] for i, t in enumerate(TASKS)}
        found.append(Shard(pool.base, part, heads, dtype=dtype, block=block, contexts=3))
    return found


def pipeline_of(pool, cut, dtype=torch.float64):
    shards = shards_of(pool, cut, dtype)
    return Pipeline(shards, [shard.names() for shard in shards], pool.groups, LocalLink())


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_chain_is_the_whole_model_to_the_bit(cut, pool, data):
    shard = shards_of(pool, [(0, 3)], torch.float32)[0]
    given = shard.to_device(batch_of(data))
    carry = given
    for block in cut:
        carry = ResidentModel(pool.base, block=block).run(carry)
    assert torch.equal(carry["output"], ResidentModel(pool.base).outputs(given))


def test_tied_tensors_share_memory_and_are_loaded_once(pool):
    whole = ResidentModel(pool.base)
    first, last = whole.modules[0].table.weight, whole.modules[2].out.weight
    assert first is last
    assert whole.arena[TABLE].data_ptr() == first.data_ptr()
    assert pool.parameters == sum(v.numel() for v in whole.arena.values())


def test_a_family_without_ties_refuses_them_by_name(pool):
    chain = pool.family.segments(pool.base)
    with pytest.raises(InputError, match=f"pool.base: tensor {TABLE!r}: shared by several layers"):
        check_untied(chain, "pool.base")
    check_untied(chain[1:], "pool.base")


def test_padding_changes_no_row(pool, data):
    shard = shards_of(pool, [(0, 3)])[0]
    ((task, path, rows), *_) = batch_of(data).parts
    whole = shard.resident.outputs(shard.to_device(Batch(((task, path, rows),))))
    for at in range(len(rows)):
        alone = shard.to_device(Batch(((task, path, rows[at : at + 1]),)))
        torch.testing.assert_close(shard.resident.outputs(alone)[0], whole[at])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_merged_layers_are_the_merged_model_and_a_loop_over_models(cut, pool, data):
    pipeline, batch = pipeline_of(pool, cut), batch_of(data)
    draw = torch.Generator().manual_seed(3)
    coding = torch.rand(batch.size, 2, len(pool.groups), generator=draw, dtype=torch.float64)
    one = Weights("one", coding=coding[:1])
    (coded,) = pipeline.embed_coded([(batch, one)])
    (filled,) = pipeline.embed(one, [batch])
    torch.testing.assert_close(coded, filled)
    (found,) = pipeline.embed_coded([(batch, Weights("", coding=coding))])
    for at in range(batch.size):
        (wanted,) = pipeline.embed(Weights(f"row {at}", coding=coding[at : at + 1]), [batch])
        torch.testing.assert_close(found[at], wanted[at])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_gradients_of_codings_are_finite_differences_and_those_of_every_occurrence(cut, pool, data):
    pipeline, batch = pipeline_of(pool, cut), batch_of(data)
    coding = torch.full((1, 2, len(pool.groups)), 0.3, dtype=torch.float64)

    def loss(coding):
        (found,) = pipeline.gradients([(batch, Weights("", coding=coding))])
        return sum(found.losses.values()), found.coding

    _, gradient = loss(coding)
    for task, group in itertools.product(range(2), range(len(pool.groups))):
        step = torch.zeros_like(coding)
        step[0, task, group] = 1e-5
        slope = (loss(coding + step)[0] - loss(coding - step)[0]) / 2e-5
        assert gradient[0, task, group].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp"])
def test_cut_models_give_the_results_of_whole_ones(method, experts):
    recipe = Recipe(method, {})
    whole, *others = [experts(cut).merge(recipe) for cut in CUTS]
    for other in others:
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_inner_products_count_a_tied_tensor_once(pool):
    whole, *others = [pipeline_of(pool, cut).gram() for cut in CUTS]
    for other in others:
        torch.testing.assert_close(whole.total, other.total)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_methods_by_statistics_need_tied_tensors_in_one_shard(method, experts):
    recipe = Recipe(method, {"examples": 6})
    found = experts(CUTS[0])
    assert 0 <= found.evaluate(recipe, "select").scores["verbs"].accuracy <= 1
    with pytest.raises(InputError, match=f"{TABLE!r} is tied across shards"):
        experts(CUTS[1]).evaluate(recipe, "select")


def test_micro_batches_are_the_same_for_every_cut(experts):
    coding = torch.full((1, 2, 1), 0.3)
    micro_batch = MicroBatch({task: torch.arange(4) for task in TASKS}, coding)
    whole, *others = [experts(cut).gradients([micro_batch], "fit", Trim())[0] for cut in CUTS]
    for other in others:
        assert whole.losses == other.losses
        torch.testing.assert_close(whole.coding, other.coding)


def spec_of(folders, methods, **more):
    return SweepSpec.model_validate(
        {
            "name": "toy",
            "pool": {
                "base": str(folders / "base"),
                "experts": {t: str(folders / t) for t in TASKS},
            },
            "tasks": {t: {"dataset": str(folders / "data" / t), "image": "text"} for t in TASKS},
            "methods": methods,
            **more,
        }
    )


def test_methods_that_the_family_does_not_offer_are_refused_in_one_line(folders, tmp_path):
    spec = spec_of(folders, {"tip_adapter": {}})
    with pytest.raises(InputError, match=r"^methods\.tip_adapter: needs .*'toy'") as error:
        prepare(spec, tmp_path, MACHINE)
    assert "\n" not in str(error.value)


LEARNED = {"steps": 2, "batch_size": 4}


def trained(experts, method, params):
    """The file of a learned state after all steps, and the losses."""
    recipe = Recipe(method, {**LEARNED, **params})
    state, losses = experts.train(recipe, None, 0, 2, 0)
    return replace(recipe, learned=state), losses


def test_routers_leave_padding_out_and_are_the_same_for_every_cut(experts):
    (wanted, losses), *others = [trained(experts(cut), "wemoe", {}) for cut in CUTS]
    for recipe, found in others:
        assert recipe.learned == wanted.learned
        assert found == losses
    logits = experts(CUTS[0]).logits(wanted, "fit")["verbs"]
    alone = experts(CUTS[3])
    batches = alone.runner
    batches_of_one = Recipe("wemoe", {**wanted.params, "routing": "sample"}, wanted.learned)
    torch.testing.assert_close(alone.logits(batches_of_one, "fit")["verbs"], logits)
    assert batches.size("verbs", "fit") == len(logits)


def test_masks_need_tied_tensors_in_one_shard(experts):
    recipe, losses = trained(experts(CUTS[0]), "concrete_task_arithmetic", {})
    assert len(losses) == 2
    experts(CUTS[0]).evaluate(recipe, "select")
    with pytest.raises(InputError, match=f"{TABLE!r} is tied across shards"):
        trained(experts(CUTS[1]), "concrete_task_arithmetic", {})


@pytest.mark.parametrize("granularity", ["domain", "sample"])
def test_routing_by_entropies_is_the_same_for_every_cut(granularity, experts):
    recipe = Recipe("dawin", {"granularity": granularity})
    whole, *others = [experts(cut).logits(recipe, "fit") for cut in CUTS[::3]]
    for other in others:
        for task in TASKS:
            torch.testing.assert_close(whole[task], other[task])


def test_padding_is_no_part_of_statistics():
    from torch import nn

    from fusion.methods.statistics.collect import Grams

    layer = nn.Linear(3, 2, bias=False)
    grams = Grams([(layer, {"weight": "w"})], {"w"})
    x = torch.randn(2, 4, 3)
    grams.on, mask = True, torch.tensor([[True, True, False, False], [True] * 4])
    grams.masks = {"mask": mask}
    layer(x)
    real = x[mask]
    torch.testing.assert_close(grams.means()["w"], real.T @ real / len(real))


def test_a_gate_reads_the_outputs_of_a_model_of_the_family(folders, data, tmp_path):
    extractor = open_extractor(str(folders / "base"), "methods.dawe.extractor")
    assert (extractor.kind, extractor.width) == ("toy", 12)
    tasks = {t: open_task(TaskSource(t, str(folders / "data" / t), image="text")) for t in TASKS}
    found = prepare_features(extractor, tasks, [("verbs", "test")], tmp_path)
    features = open_features(found["verbs", "test"])
    rows = extractor.inputs.open(data["verbs"].rows["report"].file)
    alone = extractor.inputs.collate([rows.take(torch.tensor([5]))])
    torch.testing.assert_close(features[5:6], ResidentModel(folders / "base").outputs(alone))
    with pytest.raises(InputError, match="squash: true; of images only"):
        open_extractor(str(folders / "base"), "methods.dawe.extractor", squash=True)


def test_a_merged_model_is_exported_with_its_tied_tensor_once(pool, experts, tmp_path):
    file = recipes.write(tmp_path, "task_arithmetic", pool, {"scale": 0.3}, "toy", {})
    export(file, tmp_path / "fused")
    fused = load_file(tmp_path / "fused/model.safetensors")
    wanted = experts(CUTS[0]).merge(Recipe("task_arithmetic", {"scale": 0.3}))
    assert fused.keys() == wanted.keys()
    for name, tensor in fused.items():
        assert torch.equal(tensor, wanted[name])


def test_a_linear_head_with_bias_reads_the_output_as_it_is(experts, data):
    found = experts(CUTS[3])
    head = found.runner.task_heads["verbs"]
    assert isinstance(head, LinearHead)
    assert head.bias.tolist() == [0, 0.5, 1]
    output = found.runner.embedded("pretrained", "verbs", "select")
    wanted = output[:, :3] + head.bias
    torch.testing.assert_close(found.runner.logits_of("pretrained", "verbs", "select"), wanted)
    logits = found.logits(Recipe("pretrained"), "select")["verbs"]
    torch.testing.assert_close(logits, wanted)


def test_evaluation_batches_ragged_rows_by_length_and_keeps_their_order(experts):
    runner = experts([(0, 3)]).runner
    cuts = runner.cuts("verbs", "fit", 4)
    assert cuts.back is not None
    found = runner.embed_rows("verbs", "verbs", "fit", cuts)
    alone = [torch.tensor([row]) for row in range(runner.size("verbs", "fit"))]
    assert torch.allclose(found, runner.embed_rows("verbs", "verbs", "fit", Cuts(alone)), atol=1e-6)
    some = torch.tensor([7, 2, 5])
    at = runner.embed_rows("verbs", "verbs", "fit", runner.cuts("verbs", "fit", 2, some))
    assert torch.allclose(at, found[some], atol=1e-6)
