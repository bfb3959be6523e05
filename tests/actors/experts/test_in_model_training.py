"""Parameters that live in shards: autograd's gradients, their files, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from transformers import CLIPModel

from actors.artifacts.head_file import read_head
from actors.artifacts.in_model_state_file import learned_of, load_resident
from actors.artifacts.recipe import Recipe
from actors.experts.in_model_training import plan_of
from actors.experts.recipe import rebuilt
from actors.families.clip.architecture import PROJECTION
from actors.pool.pool import task_vectors
from actors.shards.in_model_learning import Forgotten, InModelLearning
from fusion.errors import InputError
from fusion.logits.cosine_head import logits
from fusion.logits.entropy import entropy
from fusion.logits.optimize import draw
from fusion.methods.learned.concrete import drawn
from fusion.methods.learned.steps import Shape, learn_step, micro_batches
from fusion.methods.learned.wemoe import Router
from fusion.registry import METHODS
from fusion.task_vectors.sparse import largest
from fusion.task_vectors.task_vectors import TaskVectors
from tests.actors.laws.parts import NAMES
from tests.fusion.laws import IN_MODEL, assert_same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

CUT = ((0, 1), (1, 2), (2, 4))
SEED = 5
FEW = {"batch_size": 4, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def whole(parts):
    return parts.local()


@pytest.fixture(scope="module")
def cut(parts):
    return parts.local(blocks=CUT)


@pytest.fixture(scope="module")
def doubles(parts):
    """Experts in float64, for references in float64."""
    vectors = task_vectors(parts.pool)
    base = {name: tensor.double() for name, tensor in vectors.base.items()}
    deltas = {name: tensor.double() for name, tensor in vectors.deltas.items()}
    wide = TaskVectors(vectors.tasks, base, deltas)
    return parts.local(dtype=torch.float64, vectors=wide), wide


def learned(experts, method, params, steps=4):
    """Bytes of what a method learned, and the losses."""
    recipe = Recipe(method, {**FEW, **params})
    state, losses = experts.train(recipe, None, 0, steps, SEED)
    options = plan_of(recipe, NAMES, experts.runner.pipeline.groups).options
    data = learned_of(state, method, NAMES, getattr(options, "mask_steps", 0))
    return replace(recipe, learned=data), losses


# --------------------------------------------------------------------------------- the beginning


@pytest.mark.parametrize("method", IN_MODEL)
def test_without_task_vectors_there_is_the_base(method, parts, doubles):
    _, wide = doubles
    nothing = {name: torch.zeros_like(delta) for name, delta in wide.deltas.items()}
    experts = parts.local(dtype=torch.float64, vectors=TaskVectors(wide.tasks, wide.base, nothing))
    recipe, _ = learned(experts, method, {}, steps=1)
    wanted = experts.logits(Recipe("pretrained"), "select")
    for task, z in experts.logits(recipe, "select").items():
        torch.testing.assert_close(z, wanted[task], rtol=1e-5, atol=1e-5)
    assert not any(bool(delta.any()) for delta in nothing.values())


@pytest.mark.parametrize("method", IN_MODEL)
def test_task_vectors_and_base_are_untouched(method, whole):
    vectors = whole.runner.pipeline.shards[0].vectors
    before = {k: v.clone() for k, v in vectors.base.items()}
    deltas = {k: v.clone() for k, v in vectors.deltas.items()}
    recipe, _ = learned(whole, method, {}, steps=1)
    whole.evaluate(recipe, "select")
    assert_same_bits(vectors.base, before)
    assert_same_bits(vectors.deltas, deltas)


@pytest.mark.parametrize(
    ("method", "params"),
    [("wemoe", {"depth": 0}), ("ewemoe", {"depth": 0, "prune": 0.0}),
     ("concrete_task_arithmetic", {"mask": "expected"}),
     ("concrete_adamerging", {"mask": "expected"})],
)  # fmt: skip
def test_the_beginning_is_task_arithmetic(method, params, whole):
    recipe, losses = learned(whole, method, {**params, "scale": 0.4}, steps=0)
    assert losses == []
    wanted = whole.logits(Recipe("task_arithmetic", {"scale": 0.4}), "select")
    slack = 0.3 if method == "ewemoe" else 1e-3  # the smallest entry of each tensor is dropped
    for task, z in whole.logits(recipe, "select").items():
        torch.testing.assert_close(z, wanted[task], rtol=0, atol=slack)


# ------------------------------------------------------------------------- against autograd


def model_of(tiny_pool):
    return CLIPModel.from_pretrained(tiny_pool.root / "base").double().eval()


def embedded(model, tensors, images):
    """Embeddings of a library's model with other weights in its tower."""
    tower = {name: tensor for name, tensor in tensors.items() if name != PROJECTION}
    pooled = functional_call(model.vision_model, tower, (images,)).pooler_output
    return pooled @ tensors.get(PROJECTION, model.visual_projection.weight).T


def images_of(experts, task, role, at, batch=FEW["batch_size"]):
    """The images of a task's `at`-th batch, as the model reads them, in float64."""
    shard = experts.runner.pipeline.shards[0]
    rows = draw(experts.runner.size(task, role), batch, at, SEED + 7919 * NAMES.index(task))
    pixels = shard.to_device(experts.runner.batch(task, role, rows))["pixels"]
    return shard.resident.inputs.preprocess.normalise(pixels, torch.float64)


def loss_of(model, parts, experts, tensors_of, at):
    """Σ_tasks mean entropy; `tensors_of(images)` are a batch's weights."""
    total = 0
    for task in NAMES:
        images = images_of(experts, task, "fit", at)
        head = read_head(parts.data[task].head).double()
        z = logits(embedded(model, tensors_of(images), images), head)
        total = total + entropy(z).mean()
    return total


def moments(state, method):
    """name -> the gradient of the only step so far, from Adam's first moment."""
    tensors, _ = load_resident(state, method, NAMES)
    ends = "|exp_avg"
    return {k.removesuffix(ends): v / 0.1 for k, v in tensors.items() if k.endswith(ends)}


def test_gradients_of_a_mask_are_autograd_s(doubles, parts, tiny_pool):
    experts, wide = doubles
    recipe = Recipe("concrete_task_arithmetic", {**FEW, "initial_logits": 0.4})
    state, (losses,) = experts.train(recipe, None, 0, 1, SEED)
    model = model_of(tiny_pool)
    x = {
        name: torch.full(base.shape, 0.4, dtype=torch.float64, requires_grad=True)
        for name, base in wide.base.items()
    }
    tensors = {}
    for name, base in wide.base.items():
        uniform = drawn(x[name].detach(), SEED, f"drawn 0 {name}")
        m = torch.sigmoid((uniform.logit() + x[name]) / 0.5)
        tensors[name] = base + sum((0.3 * m / m.mean()) * tau for tau in wide.deltas[name])
    loss = loss_of(model, parts, experts, lambda images: tensors, 0)
    loss.backward()
    assert sum(losses.values()) == pytest.approx(loss.item(), rel=1e-6)
    found = moments(state, recipe.method)
    assert set(found) == set(x)
    largest_of = max(float(v.grad.abs().max()) for v in x.values())
    for name, value in x.items():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-6 * largest_of)


def routed_model(tiny_pool, wide, routers, pooled=True, prune=None, scale=0.3):
    """Images -> embeddings: the library's blocks one after the other, an MLP a sample."""
    static = {name: base + scale * wide.deltas[name].sum(0) for name, base in wide.base.items()}
    projection = static.pop(PROJECTION, None)
    kept = {
        name: delta if prune is None else largest(delta, prune).dense()
        for name, delta in wide.deltas.items()
    }
    model = model_of(tiny_pool)
    tower = model.vision_model
    tower.load_state_dict(static)

    def run(images):
        hidden = tower.pre_layrnorm(tower.embeddings(images))
        for index, layer in enumerate(tower.encoder.layers):
            hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), attention_mask=None)[0]
            h = layer.layer_norm2(hidden)
            g = routers[index % len(routers)](h)
            g = g.mean(0, keepdim=True).expand(len(h), -1) if pooled else g
            rows = []
            for i in range(len(h)):
                weights = {}
                for own in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                    name = f"encoder.layers.{index}.mlp.{own}"
                    weights[own] = wide.base[name] + torch.tensordot(g[i], kept[name], dims=1)
                rows.append(functional_call(layer.mlp, weights, (h[i],)))
            hidden = hidden + torch.stack(rows)
        state = tower.post_layernorm(hidden[:, 0])
        return state @ (model.visual_projection.weight if projection is None else projection).T

    return run


def started(shared, depth=2, width=32):
    """Routers as shards draw them: of segments 1 and 2, or one."""
    seeds = [0] if shared else [1_000_003, 2_000_006]
    return [Router(width, 3, depth, 0.3, seed, torch.float64) for seed in seeds]


@pytest.mark.parametrize(
    ("method", "params"),
    [("wemoe", {}), ("wemoe", {"batch_mean": False}), ("ewemoe", {"prune": 0.7})],
    ids=str,
)
def test_gradients_of_routers_are_autograd_s(method, params, doubles, parts, tiny_pool):
    experts, wide = doubles
    recipe = Recipe(method, {**FEW, **params})
    state, (losses,) = experts.train(recipe, None, 0, 1, SEED)
    routers = started(method == "ewemoe")
    mean, prune = params.get("batch_mean", True), params.get("prune")
    run, total = routed_model(tiny_pool, wide, routers, mean, prune), 0
    for task in NAMES:
        images = images_of(experts, task, "fit", 0)
        z = logits(run(images), read_head(parts.data[task].head).double())
        assert entropy(z).mean().item() == pytest.approx(losses[task], rel=1e-6)
        total = total + entropy(z).mean()
    total.backward()
    found = moments(state, method)
    before = [""] if method == "ewemoe" else [f"encoder.layers.{i}.mlp." for i in range(2)]
    wanted = {
        f"{start}router.{name}": p.grad
        for start, router in zip(before, routers, strict=True)
        for name, p in router.named_parameters()
    }
    assert set(found) == set(wanted)
    largest_of = max(float(v.abs().max()) for v in wanted.values())
    for name, value in wanted.items():
        assert bool(value.any())
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6 * largest_of)


def test_evaluation_has_a_model_a_sample(doubles, parts, tiny_pool):
    experts, wide = doubles
    recipe = Recipe("wemoe", {**FEW, "scale": 0.5, "learning_rate": 0.3})
    state, _ = experts.train(recipe, None, 0, 3, SEED)
    tensors, _ = load_resident(state, "wemoe", NAMES)
    routers = started(False)
    for index, router in enumerate(routers):
        start = f"encoder.layers.{index}.mlp.router."
        router.load_state_dict({n: tensors[start + n] for n, _ in router.named_parameters()})
    kept = replace(recipe, learned=learned_of(state, "wemoe", NAMES, 0))
    together = replace(kept, params={**recipe.params, "routing": "batch"})
    differs = False
    for task in NAMES:
        shard = experts.runner.pipeline.shards[0]
        rows = torch.arange(experts.runner.size(task, "select"))
        pixels = shard.to_device(experts.runner.batch(task, "select", rows))["pixels"]
        images = shard.resident.inputs.preprocess.normalise(pixels, torch.float64)
        head = read_head(parts.data[task].head).double()
        for pooled, given in ((False, kept), (True, together)):
            with torch.no_grad():
                run = routed_model(tiny_pool, wide, routers, pooled, scale=0.5)
                wanted = logits(run(images), head)
            found = experts.logits(given, "select")[task]
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
            differs |= pooled and not torch.equal(found, experts.logits(kept, "select")[task])
    assert differs


def test_a_step_ahead_and_the_mask_under_it_are_autograd_s(doubles, parts, tiny_pool):
    """Two steps of the first stage by plain autograd: λ' of the first is where the second looks."""
    experts, wide = doubles
    params = {**FEW, "grouping": "task", "steps": 2, "coefficient_steps": 0, "learning_rate": 0.05}
    recipe = Recipe("concrete_adamerging", params)
    state, losses = experts.train(recipe, None, 0, 2, SEED)
    model = model_of(tiny_pool)
    x = {n: torch.zeros_like(b).requires_grad_() for n, b in wide.base.items()}
    lam = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    masks = torch.optim.Adam(x.values(), lr=0.05)
    inner = torch.optim.Adam([lam], lr=1.0)

    def tensors(step, detached):
        found = {}
        for name, base in wide.base.items():
            logit = x[name].detach() if detached else x[name]
            uniform = drawn(logit.detach(), SEED, f"drawn {step} {name}")
            m = torch.sigmoid((uniform.logit() + logit) / 0.5)
            m = m / m.mean()
            found[name] = base + sum(lam[t] * m * wide.deltas[name][t] for t in range(3))
        return found

    for step in range(2):
        merged = tensors(step, True)
        inner.zero_grad()
        loss_of(model, parts, experts, lambda _, m=merged: m, 2 * step).backward()
        with torch.no_grad():
            lam.fill_(0.3)
        inner.step()
        if step == 0:
            assert sorted({round(abs(v - 0.3), 3) for v in lam.tolist()}) == [1.0]
        merged = tensors(step, False)
        masks.zero_grad()
        loss = loss_of(model, parts, experts, lambda _, m=merged: m, 2 * step + 1)
        loss.backward()
        masks.step()
        assert sum(losses[step].values()) == pytest.approx(loss.item(), rel=1e-4)
    found, _ = load_resident(state, recipe.method, NAMES)
    torch.testing.assert_close(
        found["coefficients"].flatten().double(), lam.detach(), rtol=1e-3, atol=1e-3
    )
    gap = max(float((found[n] - x[n].detach()).abs().mean()) for n in x)
    assert gap < 1e-3  # of steps of 0.05


def test_the_second_stage_is_adamerging_under_a_fixed_mask(doubles):
    experts, _ = doubles
    params = {**FEW, "steps": 0, "coefficient_steps": 2, "mask": "expected", "initial_logits": 0.3}
    params["outer_learning_rate"] = 0.05
    recipe, _ = learned(experts, "concrete_adamerging", params, steps=2)
    found, _ = load_resident(recipe.learned, recipe.method, NAMES)
    # Of equal logits the rescaled mask is 1 everywhere: this is AdaMerging itself.
    method = METHODS["adamerging"]
    groups = experts.runner.pipeline.groups
    plan = method.plan(Shape(NAMES, groups), batch_size=4, learning_rate=0.05)
    optimizer = torch.optim.Adam(plan.router.parameters(), lr=0.05)
    sizes = {name: experts.runner.size(name, "fit") for name in NAMES}
    for step in range(2):
        given = micro_batches(plan, sizes, {}, step, SEED)
        compute_gradients = lambda asked: experts.gradients(asked, "fit", plan.trim)  # noqa: E731
        learn_step(plan, optimizer, given, compute_gradients, step)
    wanted = plan.router(None).detach()
    torch.testing.assert_close(found["coefficients"], wanted, rtol=1e-3, atol=1e-3)
    assert bool(((wanted - 0.3).abs() > 0.01).any())


@pytest.mark.parametrize(
    ("method", "params"),
    [("wemoe", {}), ("wemoe", {"batch_mean": False, "depth": 1}), ("ewemoe", {"prune": 0.6})],
    ids=str,
)
def test_stacked_tasks_learn_what_single_ones_do(method, params, doubles):
    experts, _ = doubles
    runner, found = experts.runner, []
    assert runner.stacked > 100  # the models are small: all tasks in one pass
    for stacked in (runner.stacked, 8, 0):
        experts.runner.stacked, before = stacked, runner.stacked
        state, losses = experts.train(Recipe(method, {**FEW, **params}), None, 0, 2, SEED)
        experts.runner.stacked = before
        found.append((load_resident(state, method, NAMES)[0], losses))
    wanted, losses = found.pop()
    for tensors, each in found:
        for one, other in zip(each, losses, strict=True):
            assert one == pytest.approx(other, rel=1e-9)
        for name, tensor in wanted.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------------- failures, refusals


def test_a_shard_that_forgets_every_time_is_given_up(cut, monkeypatch):
    monkeypatch.setattr(InModelLearning, "forward", lambda self, *args: self.run("gone"))
    with pytest.raises(Forgotten):
        cut.train(Recipe("wemoe", FEW), None, 0, 3, SEED)


def test_another_seed_learns_something_else(whole):
    recipe = Recipe("wemoe", FEW)
    first, second = (whole.train(recipe, None, 0, 2, seed)[0] for seed in (SEED, SEED + 1))
    assert first != second


def test_calls_of_callers_that_died_are_let_go(whole):
    in_model = whole.runner.pipeline.shards[0].in_model
    for key in "abc":
        in_model.begin(key, "wemoe", {}, 0, "fp32")
    assert list(in_model.runs) == ["b", "c"]
    with pytest.raises(Forgotten):
        in_model.prepare("a", 0, "", None)
    in_model.runs.clear()


def test_what_does_not_fit_is_one_line(whole):
    recipe, _ = learned(whole, "wemoe", {}, steps=0)
    mask, _ = learned(whole, "concrete_task_arithmetic", {}, steps=0)
    state, _ = whole.train(Recipe("wemoe", FEW), None, 0, 1, SEED)
    faults = {
        "wemoe: nothing learned; a recipe needs its file": replace(recipe, learned=None),
        "wemoe: learned: a file of 'concrete_task": replace(recipe, learned=mask.learned),
        "wemoe: not a file of what was learned": replace(recipe, learned=b"nonsense"),
        r"encoder.layers.0.mlp.router.weights.0': \[32, 32\]; \[3, 32\] needed": replace(
            recipe, params={**recipe.params, "depth": 1}
        ),
        "did you mean 'depth'": replace(recipe, params={"deph": 1}),
    }  # fmt: skip
    for said, wrong in faults.items():
        with pytest.raises(InputError, match=said) as error:
            whole.logits(wrong, "select")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="state: after 1 steps; 2 needed"):
        whole.train(Recipe("wemoe", FEW), state, 2, 3, SEED)
    with pytest.raises(InputError, match="state: none; that after 2 steps needed"):
        whole.train(Recipe("wemoe", FEW), None, 2, 3, SEED)
    with pytest.raises(InputError, match="task_arithmetic: nothing of it lives in shards"):
        whole.train(Recipe("task_arithmetic"), None, 0, 1, SEED)
    with pytest.raises(InputError, match="wemoe: one model a sample; there is no single model"):
        whole.merge(recipe)


def test_files_of_other_tasks_are_refused(whole, parts):
    recipe, _ = learned(whole, "wemoe", {}, steps=0)
    with pytest.raises(InputError, match="tasks: lines, tones, blobs; the pool has blobs, tones"):
        load_resident(recipe.learned, "wemoe", ("blobs", "tones", "lines"))


def test_a_loss_that_is_not_finite_is_one_line(whole):
    recipe = Recipe("concrete_task_arithmetic", {**FEW, "scale": 1e38})
    with pytest.raises(InputError, match=r"step 0: task '\w+': loss nan is not finite"):
        whole.train(recipe, None, 0, 2, SEED)
    assert not any(
        p.requires_grad for p in whole.runner.pipeline.shards[0].resident.modules[1].parameters()
    )


def test_an_export_is_what_was_measured(whole, parts):
    recipe, _ = learned(whole, "concrete_adamerging", {"steps": 1, "coefficient_steps": 2}, 3)
    merged = whole.merge(recipe)
    found = rebuilt(parts.pool, recipe)
    assert_same_bits({name: found[name] for name in merged}, merged)
    state, _ = whole.train(Recipe(recipe.method, recipe.params), None, 0, 1, SEED)
    ahead = learned_of(state, recipe.method, NAMES, 1)  # λ' is a step ahead, and not merged with
    assert "coefficients" not in load_resident(ahead, recipe.method, NAMES)[0]
