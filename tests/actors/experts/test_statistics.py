"""Statistics of data: what a library's own model gives, computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm
from transformers import CLIPModel, CLIPVisionModel

from actors.artifacts.errors import Forgotten
from actors.artifacts.head_file import read_head
from actors.artifacts.recipe import Recipe
from actors.artifacts.statistics_file import opened, place
from actors.experts.statistics import compute_statistics, drawn
from actors.pool.pool import gram_sizes
from actors.shards.requests import FisherBackward, FisherForward, GramForward, WriteStatistics
from actors.shards.statistics import StatisticsCollector
from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.registry import METHODS
from tests.actors.laws.parts import NAMES

FEW = {"examples": 24, "seed": 3}
WHOLE, CUT = (None,), ((0, 1), (1, 3), (3, 4))


def experts_of(parts, cache, blocks=WHOLE, data=None):
    """Experts with a cache folder of their own; of some tasks' data."""
    given = replace(parts, cache=cache, data=data or parts.data)
    return given.local(blocks=blocks)


@pytest.fixture
def whole(parts, tmp_path):
    return experts_of(parts, tmp_path / "whole")


def found_by(experts, keys):
    """The statistics under these keys, of the whole model."""
    return opened(keys, range(4), experts.runner.embeddings.root.parent)


def model_of(tiny_pool, expert):
    """A library's own model: the expert's tower in the base's CLIP, in float64."""
    model = CLIPModel.from_pretrained(tiny_pool.root / "base").double().eval()
    tower = CLIPVisionModel.from_pretrained(tiny_pool.root / "experts" / expert)
    model.vision_model.load_state_dict(tower.state_dict())
    return model


def images_of(experts, task, method, params):
    """The images whose statistics are taken, as the model reads them, in float64."""
    rows = drawn(experts.runner, method, task, METHODS[method].statistics_request(params))
    batch = experts.runner.batch(task, "fit", torch.from_numpy(rows))
    pixels = experts.runner.pipeline.shards[0].to_device(batch)["pixels"]
    return experts.runner.pipeline.shards[0].resident.inputs.preprocess.normalise(
        pixels, torch.float64
    )


def inputs_of(module, run):
    """Inputs [rows, in] of every linear layer of a module during `run()`."""
    seen, handles = {}, []
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _, given, path=path: seen.update({path: given[0].flatten(0, -2)})
                )
            )
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen


def test_gram_matrices_are_those_of_the_library_s_layers(whole, tiny_pool):
    found = found_by(whole, compute_statistics(whole.runner, "regmean", FEW))
    for t, task in enumerate(NAMES):
        tower = model_of(tiny_pool, task).vision_model
        images = images_of(whole, task, "regmean", FEW)
        seen = inputs_of(tower, lambda tower=tower, images=images: tower(images))
        assert {f"{path}.weight" for path in seen} == set(found)
        for path, x in seen.items():
            wanted = x.T @ x / len(x)
            got = found[f"{path}.weight"][t].double()
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    q, k = "encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.self_attn.k_proj.weight"
    assert found.key(q) == found.key(k)  # one matrix for both


def test_statistics_of_norms_are_those_of_the_library_s_layers(whole, tiny_pool):
    found = found_by(whole, compute_statistics(whole.runner, "lot", FEW))
    grams = found_by(whole, compute_statistics(whole.runner, "regmean", FEW))
    for t, task in enumerate(NAMES):
        tower, seen = model_of(tiny_pool, task).vision_model, {}
        for path, layer in tower.named_modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.register_forward_pre_hook(
                    lambda norm, given, path=path, seen=seen: seen.update(
                        {path: layer_norm(given[0], norm.normalized_shape, eps=norm.eps)}
                    )
                )
        with torch.no_grad():
            tower(images_of(whole, task, "lot", FEW))
        assert {f"{path}.weight" for path in seen} == set(found) - set(grams)
        for path, unit in seen.items():
            wanted = unit.flatten(0, -2).square().mean(0)
            got = found[f"{path}.weight"][t].double()
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        for name in grams:
            assert torch.equal(found[name], grams[name])


@pytest.mark.parametrize("estimate", ["sampled", "exact", "batch"])
def test_squared_gradients_are_those_of_autograd(estimate, whole, tiny_pool, parts):
    params = {"examples": 5, "seed": 1, "estimate": estimate, "batch_size": 2}
    found = found_by(whole, compute_statistics(whole.runner, "fisher", params))
    task, t = "tones", 1
    model = model_of(tiny_pool, task)
    head = read_head(parts.data[task].head).double()
    pixels = images_of(whole, task, "fisher", params)
    tower = dict(model.vision_model.named_parameters())
    wanted = {name: torch.zeros_like(p) for name, p in tower.items()}
    step = 2 if estimate == "batch" else 1
    for i, start in enumerate(range(0, 5, step)):
        hidden = model.vision_model(pixels[start : start + step]).pooler_output
        logs = logits(model.visual_projection(hidden), head).log_softmax(1)
        p = logs.detach().exp()
        if estimate == "sampled":
            generator = torch.Generator().manual_seed(1 + i)
            drawn_label = torch.multinomial(p.float(), 1, generator=generator)
            terms = [logs.gather(1, drawn_label).sum()]
        elif estimate == "exact":
            terms = [p[0, c].sqrt() * logs[0, c] for c in range(p.shape[1])]
        else:
            terms = [(p.sqrt() * logs).sum()]
        for term in terms:
            gradients = torch.autograd.grad(term, list(tower.values()), retain_graph=True)
            for name, gradient in zip(tower, gradients, strict=True):
                wanted[name] += gradient**2 / 5
    largest = max(value.max().item() for value in wanted.values())
    for name, value in wanted.items():
        scale = value.max().item() + 1e-6 * largest  # what is 0 (a key's bias) is rounding here
        torch.testing.assert_close(found[name][t].double(), value, rtol=2e-3, atol=2e-3 * scale)


def test_prefixes_are_merged_layer_by_layer(whole, tiny_pool):
    """The procedure of the paper, on a library's models in float64."""
    found = whole.merge(Recipe("regmean_plusplus", FEW))
    models = [model_of(tiny_pool, task).vision_model for task in NAMES]
    target = model_of(tiny_pool, NAMES[0]).vision_model
    states = [model.state_dict() for model in models]
    mean = {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}
    target.load_state_dict(mean)
    hidden = []
    for task in NAMES:
        pixels = images_of(whole, task, "regmean_plusplus", FEW)
        with torch.no_grad():
            hidden.append(target.pre_layrnorm(target.embeddings(pixels)))
    for index, layer in enumerate(target.encoder.layers):
        grams = {}
        for model, h in zip(models, hidden, strict=True):
            own = model.encoder.layers[index]
            seen = inputs_of(own, lambda own=own, h=h: own(h, attention_mask=None))
            for path, x in seen.items():
                gram = x.T @ x / len(x)
                hat = 0.95 * gram
                hat.diagonal().copy_(gram.diagonal() + 1e-6 * gram.diagonal().mean())
                grams.setdefault(path, []).append(hat)
        merged = dict(layer.state_dict())
        for path, hats in grams.items():
            ws = [m.encoder.layers[index].get_submodule(path).weight.data for m in models]
            right = sum(g @ w.T for g, w in zip(hats, ws, strict=True))
            merged[f"{path}.weight"] = torch.linalg.solve(sum(hats), right).T
        layer.load_state_dict(merged)
        with torch.no_grad():
            outs = [layer(h, attention_mask=None) for h in hidden]
        hidden = [out[0] if isinstance(out, tuple) else out for out in outs]
    wanted = target.state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-3, atol=1e-4)


def test_statistics_are_gathered_once_and_are_those_of_this_data(whole, parts, tmp_path):
    keys = compute_statistics(whole.runner, "regmean", FEW)
    root = whole.runner.embeddings.root.parent
    before = {place(key, 1, root): place(key, 1, root).stat().st_mtime_ns for key in keys}
    sizes = gram_sizes(parts.pool)  # what `sweeps plan` says of them
    found = found_by(whole, keys)
    assert {key: found.stacks[key][0].nbytes for key in found.stacks} == sizes
    assert compute_statistics(whole.runner, "regmean", {**FEW, "non_diagonal": 0.1}) == keys
    cut = experts_of(parts, tmp_path / "whole", CUT)
    assert compute_statistics(cut.runner, "regmean", FEW) == keys  # the same files for another cut
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(compute_statistics(whole.runner, "regmean", {**FEW, "seed": 4})).isdisjoint(keys)
    assert set(compute_statistics(whole.runner, "regmean", {**FEW, "examples": 25})).isdisjoint(
        keys
    )
    place(keys[0], 1, root).unlink()
    assert compute_statistics(whole.runner, "regmean", FEW) == keys
    assert place(keys[0], 1, root).exists()


def test_evaluations_go_on_after_statistics_as_before(whole):
    before = whole.evaluate(Recipe("pretrained"), "select").metrics()
    whole.evaluate(Recipe("fisher", {"examples": 4}), "select")
    whole.evaluate(Recipe("regmean_plusplus", FEW), "select")
    assert whole.evaluate(Recipe("pretrained"), "select").metrics() == before
    assert not any(
        p.requires_grad
        for m in whole.runner.pipeline.shards[0].resident.modules
        for p in m.parameters()
    )


def test_an_expert_without_a_task_or_fit_rows_is_refused(parts, tmp_path):
    data = parts.data
    some = {name: data[name] for name in ("lines", "tones")}
    with pytest.raises(InputError, match="expert 'blobs': no task of its name to take statistics"):
        experts_of(parts, tmp_path, data=some).merge(Recipe("regmean", FEW))
    bare = {n: replace(t, rows={"select": t.rows["select"]}) for n, t in data.items()}
    with pytest.raises(InputError, match="task 'lines': no fit rows; at least 1 needed"):
        experts_of(parts, tmp_path, data=bare).merge(Recipe("fisher", {"examples": 2}))


def restarted(experts, index):
    """The gathering of a shard as it is after a restart: it knows of nothing."""
    shard = experts.runner.pipeline.shards[index]
    shard.collector.forget()
    shard.collector = StatisticsCollector(shard)


@pytest.mark.parametrize(
    ("method", "moment"),
    [
        ("regmean", GramForward),
        ("regmean", WriteStatistics),
        ("fisher", FisherForward),
        ("fisher", FisherBackward),
    ],
)
def test_a_shard_that_dies_while_gathering_is_noticed(method, moment, parts, tmp_path, monkeypatch):
    """What it had seen is not in its sums any more: nothing is written of them."""
    monkeypatch.setattr("fusion.methods.statistics.regmean.BATCH", 8)
    params = FEW if method == "regmean" else {"examples": 3}
    undisturbed = experts_of(parts, tmp_path / "whole")
    wanted = found_by(undisturbed, compute_statistics(undisturbed.runner, method, params))
    experts = experts_of(parts, tmp_path / "cut", CUT)
    calls, real = [0], experts.runner.pipeline.link.call

    def call(shard, request, *given):
        if isinstance(request, moment) and shard is experts.runner.pipeline.shards[1]:
            calls[0] += 1
            if calls[0] == 2:  # its second batch; the second expert's `conclude`
                restarted(experts, 1)
        return real(shard, request, *given)

    monkeypatch.setattr(experts.runner.pipeline.link, "call", call)
    with pytest.raises(Forgotten):
        compute_statistics(experts.runner, method, params)
    keys = compute_statistics(experts.runner, method, params)
    found = found_by(experts, keys)
    assert list(found) == list(wanted)
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
