"""A pool of T5s: opened, tokenised, evaluated and merged by every kind of method, at every cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.artifacts.head_file import open_head, read_head
from actors.artifacts.recipe import Recipe
from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import embedding_cache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.families.registry import family_in
from actors.families.t5.architecture import SHARED
from actors.gate_features.extractor import open_extractor
from actors.gate_features.feature_cache import open_features, prepare_features
from actors.pool.pool import gram_sizes, open_pool
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from fusion.errors import InputError
from fusion.logits.head import AnswerHead
from fusion.methods.learned.steps import MicroBatch
from fusion.registry import METHODS
from fusion.task_vectors.sparsify import Trim
from tests.actors.families.t5.models import CLASSES, HEADS, KV, LAST, D, library, write_pool

CUTS = [[(0, LAST)], [(0, 2), (2, LAST)]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("t5_pool"))


@pytest.fixture(scope="module")
def pool(root):
    return open_pool(str(root / "base"), {task: str(root / task) for task in CLASSES})


@pytest.fixture(scope="module")
def tasks(root):
    sources = {t: TaskSource(t, str(root / "data" / t)) for t in CLASSES}
    return {t: open_task(source, "text") for t, source in sources.items()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(pool, tasks, cache):
    return prepare_data(pool.base, tasks, Splits(), ("fit", "select", "report"), cache)


@pytest.fixture(scope="module")
def experts(pool, data, cache):
    found = embedding_cache(cache, pool, "cpu", {})
    return [local_experts(pool, data, found, blocks=cut) for cut in CUTS]


def test_heads_are_the_tokens_of_answers(data, pool):
    head = data["colour"].head
    found = open_head(head)
    assert isinstance(found, AnswerHead)
    assert (found.classes, found.objective) == (3, "vocabulary")
    tokenizer = pool.family.inputs(pool.base).tokenizer.load()
    rows = [[int(token) for token in row if token >= 0] for row in read_head(head)]
    assert tokenizer.batch_decode(rows) == ["red </s>", "green </s>", "blue sky </s>"]


def test_another_objective_has_a_head_of_its_own(data, pool, root, tmp_path):
    heads = {}
    for objective in (None, "vocabulary", "answers", "fusionbench"):
        source = TaskSource("colour", str(root / "data/colour"), objective=objective)
        tasks = {"colour": open_task(source, "text")}
        heads[objective] = pool.family.heads(pool.base, tasks, tmp_path)["colour"]
    assert heads[None].name == heads["vocabulary"].name == data["colour"].head.name
    assert len({file.name for file in heads.values()}) == 3
    assert open_head(heads["answers"]).objective == "answers"
    assert open_head(heads["fusionbench"]).averaged
    assert open_head(heads[None]).objective == "vocabulary"


def test_a_head_file_is_refused(pool, root):
    source = TaskSource("heat", str(root / "data/heat"), head="head.safetensors")
    tasks = {"heat": open_task(source, "text")}
    with pytest.raises(InputError, match=r"^tasks\.heat\.head: 'head\.safetensors'; none allowed"):
        pool.family.check_heads(pool.base, tasks)


def test_a_tokenizer_that_ends_no_text_is_refused(pool, tasks, root, tmp_path):
    folder = shutil.copytree(root / "base", tmp_path / "base")
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(InputError, match=r"^pool\.base: .*: the tokenizer does not end a text"):
        pool.family.check_tasks(replace(pool.base, folder=folder), tasks)


def test_an_expert_scores_answers_as_transformers_does(root, data, experts):
    runner = experts[0].runner
    found = runner.logits_of("heat", "heat", "report")
    batch = runner.pipeline.shards[0].to_device(runner.batch("heat", "report", slice(0, 12)))
    model, answers = library(root / "heat"), read_head(data["heat"].head).long()
    for at, answer in enumerate(answers):
        tokens = answer[answer >= 0]
        with torch.inference_mode():
            z = model(
                input_ids=batch["ids"],
                attention_mask=batch["mask"].long(),
                labels=tokens.repeat(12, 1),
            ).logits
        wanted = z.log_softmax(-1)[:, range(len(tokens)), tokens].sum(1)
        torch.testing.assert_close(found[:, at], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("task_arithmetic", {"scale": 0.3}),
        ("ties", {}),
        ("regmean", {"examples": 8}),
        ("regmean_plusplus", {"examples": 8}),
        ("lot", {"examples": 8}),
        ("tall_mask", {}),
        ("dare", {}),
        ("wise_ft", {"expert": "heat", "alpha": 0.5}),
        ("fisher", {"examples": 8}),
        ("ensemble", {}),
        ("dawin", {}),
        ("emr", {}),
    ],
)
def test_methods_give_the_same_for_every_cut(method, params, experts):
    whole, other = (each.logits(Recipe(method, params), "report") for each in experts)
    for task, names in CLASSES.items():
        assert whole[task].shape == (12, len(names))
        torch.testing.assert_close(whole[task], other[task])
        assert bool((whole[task] < 0).all())


GIVEN = {
    "weighted_average": {"weights": {"colour": 0.5, "heat": 0.4}},
    "slerp": {"experts": ["colour", "heat"]},
    "nuslerp": {"experts": ["colour", "heat"], "granularity": "row"},
    "nearswap": {"expert": "heat"},
    "arcee_fusion": {"expert": "heat"},
    "wise_ft": {"expert": "heat", "alpha": 0.5},
    "wudi": {"steps": 5},
    "fisher": {"examples": 6},
    "regmean": {"examples": 6},
    "regmean_plusplus": {"examples": 6},
    "lot": {"examples": 6},
}
"""Static method -> hyper-parameters that it needs, or that are quick."""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.kind == "static"])
def test_static_methods_have_the_same_bits_in_shards_of_files(
    method, experts, pool, data, tmp_path
):
    cache, files = embedding_cache(tmp_path, pool, "cpu", {}), opened_vectors(file_vectors(pool))
    other = local_experts(pool, data, cache, blocks=CUTS[1], vectors=files)
    recipe = Recipe(method, GIVEN.get(method, {}))
    found = other.logits(recipe, "report")
    for task, wanted in experts[0].logits(recipe, "report").items():
        assert bool(wanted.isfinite().all())
        assert torch.equal(found[task], wanted)


@pytest.mark.parametrize("method", ["wemoe", "concrete_task_arithmetic", "concrete_adamerging"])
def test_what_learns_in_the_model_learns_the_same_for_every_cut(method, experts):
    layered = {"grouping": "layer", "coefficient_steps": 1} if method.endswith("merging") else {}
    recipe = Recipe(method, {"steps": 1 if layered else 2, "batch_size": 3, **layered})
    (state, losses), (other, same) = (each.train(recipe, None, 0, 2, 0) for each in experts)
    assert losses == same
    assert state == other
    learned = replace(recipe, learned=state)
    one, two = (each.logits(learned, "report") for each in experts)
    for task in CLASSES:
        torch.testing.assert_close(one[task], two[task])


def test_the_objective_is_the_entropy_of_the_first_token(experts, data):
    coding = torch.zeros(1, 2, 1)
    batch = MicroBatch({task: torch.arange(4) for task in CLASSES}, coding)
    (found,), (other,) = (each.gradients([batch], "fit", Trim()) for each in experts)
    assert found.losses == other.losses
    torch.testing.assert_close(found.coding, other.coding)
    output = experts[0].runner.embedded("pretrained", "heat", "fit")[:4]
    assert found.losses["heat"] == pytest.approx(output[:, 0].mean().item(), rel=1e-5)


@pytest.fixture
def averaged(pool, tasks, data, tmp_path):
    """Experts whose tasks have FusionBench's objective, whole and cut."""
    sources = {t: replace(task.source, objective="fusionbench") for t, task in tasks.items()}
    given = {t: replace(task, source=sources[t]) for t, task in tasks.items()}
    heads = pool.family.heads(pool.base, given, tmp_path)
    theirs = {t: replace(task, head=heads[t]) for t, task in data.items()}
    found = embedding_cache(tmp_path, pool, "cpu", {})
    return [local_experts(pool, theirs, found, blocks=cut) for cut in CUTS]


def test_the_objective_of_fusionbench_in_all_that_learns_without_labels(averaged, root):
    runner, rows = averaged[0].runner, torch.arange(4)
    batch = MicroBatch(dict.fromkeys(CLASSES, rows), torch.zeros(1, 2, 1))
    (found,), (other,) = (each.gradients([batch], "fit", Trim()) for each in averaged)
    model, wanted = library(root / "base"), {}
    for task in CLASSES:
        given = runner.pipeline.shards[0].to_device(runner.batch(task, "fit", rows))
        with torch.inference_mode():
            z = model(
                input_ids=given["ids"],
                attention_mask=given["mask"].long(),
                decoder_input_ids=torch.ones(4, 1, dtype=torch.int64),
            ).logits[:, 0]
        p = z.mean(0).softmax(-1)
        wanted[task] = -(p * (p + 1e-8).log()).sum().item()
    assert found.losses == other.losses == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(found.coding, other.coding)
    recipe = Recipe("wemoe", {"steps": 1, "batch_size": 4, "depth": 0, "scale": 0.0})
    (state, losses), (same, again) = (each.train(recipe, None, 0, 1, 0) for each in averaged)
    assert (state, losses) == (same, again)
    labelled = replace(batch, beta=torch.tensor(1.0))  # with labels there is no entropy
    assert not runner.batch_of(labelled, "fit").averaged
    plain = runner.entropies_of("heat", "colour", "report")  # routing reads a row's own entropy
    assert torch.equal(plain, runner.embedded("heat", "colour", "report")[:, 0])


def test_routing_reads_the_entropy_of_the_first_token(experts):
    runner = experts[0].runner
    found = runner.entropies_of("heat", "colour", "report")
    assert torch.equal(found, runner.embedded("heat", "colour", "report")[:, 0])
    with pytest.raises(InputError, match=r"temperature: 2\.0; 1 allowed where entropies"):
        experts[0].logits(Recipe("dawin", {"temperature": 2}), "report")


def test_exact_match_is_measured_beside_ranks(experts):
    found = experts[0].evaluate(Recipe("task_arithmetic", {"scale": 0.3}), "report")
    written = experts[0].runner.predicted_of("heat", "heat", "report").written
    assert written.dtype == torch.int64
    assert set(found.metrics()) >= {"acc/heat", "exact/heat", "exact/mean", "acc/mean", "nll/heat"}
    whole = experts[0].evaluate(Recipe("experts"), "report").metrics()
    assert whole["outside/heat"] == (written == -1).double().mean().item()
    none = experts[0].evaluate(Recipe("ensemble", {}), "report").metrics()
    assert none.keys().isdisjoint({"exact/mean", "outside/mean"})


def test_gates_read_the_mean_of_the_encoder(root, tasks, cache):
    source = root / "base"
    extractor = open_extractor(str(source), "methods.dawe.extractor")
    assert (extractor.kind, extractor.width) == ("t5", D)
    files = prepare_features(extractor, tasks, [("heat", "test")], cache)
    found = open_features(files["heat", "test"])
    text = tasks["heat"].wording.prompt({"text": "x"})
    assert text == "x"
    rows = extractor.inputs.open(
        extractor.inputs.prepare(tasks, [("heat", "test")], cache)["heat", "test"]
    )
    given = extractor.inputs.collate([rows.take(torch.tensor([5]))])
    with torch.inference_mode():
        states = library(source).encoder(
            input_ids=given["ids"], attention_mask=given["mask"].long()
        )
    torch.testing.assert_close(found[5], states.last_hidden_state[0].mean(0), rtol=1e-5, atol=1e-5)


def test_published_gates_have_an_output_for_every_q_and_v(pool):
    layout = pool.family.published_layout(pool.groups)
    assert len(layout.keys) == 2 * 2 + 4 * 1
    assert all(name.endswith((".q.weight", ".v.weight")) for name in layout.keys)
    assert layout.sources[SHARED] is None
    assert pool.family.published_layout(["other"]) is None


def test_statistics_of_layers_that_share_an_input_are_kept_once(pool, experts):
    runner = experts[1].runner
    assert set(gram_sizes(pool)) == set(pool.family.layout(pool.base).shared_inputs.values())
    assert family_in(pool.base).name == "t5"
    assert runner.size("heat", "report") == 12


def adapter(folder, names, rank=2):
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name in names:
        sizes = {"A": (rank, D), "B": (KV * HEADS, rank)}
        for part, size in sizes.items():
            key = f"base_model.model.{name}.lora_{part}.weight"
            tensors[key] = 0.1 * torch.randn(size, generator=draw)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q", "v"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return tensors


def test_adapters_of_q_and_v(pool, root, tmp_path):
    modules = [n.removesuffix(".weight") for n in pool.family.published_layout(pool.groups).keys]
    tensors = adapter(tmp_path / "lora", modules)
    found = open_pool(str(root / "base"), {"a": str(tmp_path / "lora")})
    assert [*found.experts["a"].factors] == [f"{name}.weight" for name in modules]
    from actors.pool.pool import task_vectors

    vectors = task_vectors(found)
    for name in modules:
        up, down = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
        torch.testing.assert_close(vectors.deltas[f"{name}.weight"][0], 2 * up @ down)
    assert not vectors.deltas[SHARED].to_dense().any()


def test_merged_models_are_written_as_transformers_reads_them(pool, experts, root, tmp_path):
    from sweeps.results import recipe as recipes
    from sweeps.results.export.from_recipe import export

    file = recipes.write(tmp_path, "task_arithmetic", pool, {"scale": 0.3}, "t5", {})
    export(file, tmp_path / "fused")
    wanted = experts[0].merge(Recipe("task_arithmetic", {"scale": 0.3}))
    tensors = load_file(tmp_path / "fused/model.safetensors")
    assert tensors.keys() == wanted.keys()
    state = library(tmp_path / "fused").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    config = json.loads((tmp_path / "fused/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert (tmp_path / "fused/tokenizer.json").exists()


def test_what_rows_write_is_what_generate_writes(root, data, experts):
    """Answers that are what the model writes with another token, blank here, before its end."""
    from transformers import GenerationConfig

    from actors.experts.model_runner import Predicted, completed

    runner = experts[1].runner
    given = (
        experts[0].runner.pipeline.shards[0].to_device(runner.batch("heat", "report", slice(0, 12)))
    )
    how = GenerationConfig(
        max_new_tokens=4, do_sample=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1
    )
    with torch.inference_mode():
        texts = library(root / "heat").generate(
            given["ids"], attention_mask=given["mask"].long(), generation_config=how
        )[:, 1:]
    seen = []

    def embed(pairs):
        for rows, batch in pairs:
            (tokens,) = runner.pipeline.embed(weights, [batch])
            seen.append((rows, batch.prefix, tokens))
            yield tokens

    from fusion.task_vectors.coding import one_hot

    weights = runner.pipeline.weights(coding=one_hot(runner.tasks, "heat"), own=True)
    answers = torch.unique(texts[:, :1]).view(-1, 1)
    head = AnswerHead(torch.cat([answers, torch.ones_like(answers)], 1), frozenset(range(40)) - {1})
    before = runner.task_heads
    runner.task_heads = {**before, "heat": head}
    open_rows = Predicted(torch.zeros(12, len(answers)), torch.full((12,), -1))
    found = completed(runner, "heat", "report", open_rows, embed)
    runner.task_heads = before
    assert found.written.shape == (12,)
    for rows, prefix, tokens in seen:
        for row, written, token in zip(rows.tolist(), prefix, tokens, strict=True):
            if len(written) < 4:
                assert token.item() == texts[row, len(written)].item()
    assert len(seen) > 3
