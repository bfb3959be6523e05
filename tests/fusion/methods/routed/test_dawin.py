"""DaWin, by hand and against the released formulas written down anew in float64."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from fusion.errors import InputError
from fusion.methods.routed.dawin import ExpertLogits, Routing, dawin, is_oracle, transductive
from fusion.methods.routed.mixtures import Mixture, fit_beta, fit_dirichlet
from fusion.parameters import bind, parameters
from fusion.task_vectors.coding import mix
from fusion.task_vectors.task_vectors import TaskVectors

ROWS, CLASSES = 60, 7


def drawn(tasks: int, seed: int = 0) -> ExpertLogits:
    generator = torch.Generator().manual_seed(seed)
    sharp = 4 * torch.rand(tasks + 1, ROWS, 1, generator=generator, dtype=torch.float64)
    logits = sharp * torch.randn(tasks + 1, ROWS, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    return ExpertLogits(tuple("abcdefgh"[:tasks]), logits[:tasks], logits[tasks], labels)


ONE, THREE = drawn(1), drawn(3)


def entropies(logits: Tensor, temperature: float = 1.0) -> Any:
    return scipy_entropy(softmax(logits.numpy() / temperature, axis=-1), axis=-1)


def coefficients(routing: Routing) -> Tensor:
    """[N, T]: those of each row."""
    return routing.codings[routing.assign, :, 0]


def close(found: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(wanted).double(), atol=2e-7, rtol=0)


def two_rows() -> ExpertLogits:
    """Entropies by hand: the base's ln 2 and 0, the expert's 0 and ln 4."""
    base = torch.tensor([[0.0, 0.0, -900, -900], [900.0, 0, 0, 0]])
    expert = torch.tensor([[900.0, 0, 0, 0], [0.0, 0, 0, 0]])
    return ExpertLogits(("a",), expert[None], base)


def test_two_models_by_hand() -> None:
    each = dawin(two_rows(), granularity="sample")
    close(coefficients(each), [[2 / 3], [1 / 5]])
    assert each.codings.shape == (2, 1, 1)
    assert each.codings.dtype == torch.float32
    assert each.assign.dtype == torch.int64
    assert each.logits is None
    whole = dawin(two_rows())
    close(whole.codings.flatten(), [13 / 30])
    assert whole.assign.tolist() == [0, 0]


def test_several_experts_by_hand() -> None:
    one = two_rows()
    both = ExpertLogits(("z", "f"), torch.stack([one.base, one.experts[0]]), torch.randn(2, 4))
    each = dawin(both, granularity="sample")
    close(coefficients(each), [[0.6 * 1 / 3, 0.6 * 2 / 3], [0.6 * 4 / 5, 0.6 * 1 / 5]])
    close(dawin(both, scale=0.5).codings[0, :, 0], [17 / 30, 13 / 30])


def test_one_named_expert_among_several() -> None:
    routing = dawin(THREE, expert="b", granularity="sample")
    alone = ExpertLogits(("b",), THREE.experts[1:2], THREE.base)
    close(coefficients(routing)[:, 1:2], coefficients(dawin(alone, granularity="sample")))
    assert not coefficients(routing)[:, [0, 2]].any()
    odds = entropies(THREE.base) - entropies(THREE.experts[1])
    close(coefficients(routing)[:, 1], 1 / (1 + np.exp(-odds)))


def test_the_temperatures_are_each_ones_own() -> None:
    routing = dawin(ONE, granularity="sample", temperature=0.5, base_temperature=3.0)
    odds = entropies(ONE.base, 3.0) - entropies(ONE.experts[0], 0.5)
    close(coefficients(routing)[:, 0], 1 / (1 + np.exp(-odds)))


def test_several_experts_share_one_temperature_and_ignore_the_base() -> None:
    routing = dawin(THREE, granularity="sample", temperature=0.5)
    wanted = 0.9 * softmax(-entropies(THREE.experts, 0.5), axis=0)
    close(coefficients(routing), wanted.T)
    close(coefficients(dawin(THREE, temperature=0.5))[0], wanted.mean(1))
    other = dataclasses.replace(THREE, base=torch.randn(ROWS, CLASSES))
    again = dawin(other, granularity="sample", temperature=0.5, base_temperature=9.0)
    assert torch.equal(again.codings, routing.codings)


def test_softmax_of_two_is_the_sigmoid() -> None:
    pair = ExpertLogits(("z", "f"), torch.stack([ONE.base, ONE.experts[0]]), ONE.base)
    two = dawin(ONE, granularity="sample")
    several = dawin(pair, granularity="sample", scale=0.5)  # scale·T = 1
    close(coefficients(several)[:, 1], coefficients(two)[:, 0])
    close(coefficients(several)[:, 0], 1 - coefficients(two)[:, 0])


def test_sure_of_everything_against_sure_of_nothing_are_the_bounds() -> None:
    nothing, everything = torch.zeros(1, CLASSES), 900 * torch.eye(CLASSES)[:1]
    high = dawin(ExpertLogits(("a",), everything[None], nothing)).codings.item()
    low = dawin(ExpertLogits(("a",), nothing[None], everything)).codings.item()
    assert (low, high) == pytest.approx((1 / (CLASSES + 1), CLASSES / (CLASSES + 1)))


@pytest.mark.parametrize("expertise", ["entropy", "pseudo_hard", "label"])
def test_the_offset_is_the_released_formula(expertise: Any) -> None:
    routing = dawin(ONE, granularity="sample", offset=True, expertise=expertise)
    h_z, h_f = uncertainty(expertise, [ONE.base, ONE.experts[0]])
    b = (h_z.std(ddof=1) / h_z.mean() + h_f.std(ddof=1) / h_f.mean()) / 2
    rho = h_z.mean() / (h_z.mean() + h_f.mean())
    wanted = (np.exp(-h_f) + b * rho) / (np.exp(-h_z) + np.exp(-h_f) + b)
    close(coefficients(routing)[:, 0], wanted)
    plain = coefficients(dawin(ONE, granularity="sample", expertise=expertise))
    assert (coefficients(routing) - plain).abs().max() > 0.05


def test_an_offset_of_models_that_never_vary_changes_nothing() -> None:
    rows = two_rows()
    constant = ExpertLogits(("a",), rows.experts[:, :1].repeat(1, 3, 1), rows.base[:1].repeat(3, 1))
    close(dawin(constant, offset=True).codings.flatten(), [2 / 3])
    far = torch.tensor([[0.0, 5000]] * 3)  # e^{-5000} is 0
    routing = dawin(
        ExpertLogits(("a",), far[None], far, torch.zeros(3, dtype=torch.int64)),
        offset=True,
        expertise="label",
    )
    close(routing.codings.flatten(), [1 / 2])
    sure = ExpertLogits(("a",), constant.experts, constant.experts[0])  # entropies of 0: CV is 0/0
    close(dawin(sure, offset=True).codings.flatten(), [1 / 2])


def uncertainty(expertise: str, models: list[Tensor], temperatures: tuple[float, ...] = ()) -> Any:
    """H [M, N] from the definitions, by scipy."""
    taus = temperatures or (1.0,) * len(models)
    tempered = [softmax(z.numpy() / tau, axis=-1) for z, tau in zip(models, taus, strict=True)]
    if expertise == "entropy":
        return np.stack([scipy_entropy(p, axis=-1) for p in tempered])
    target = np.mean(tempered, axis=0)
    if expertise == "pseudo_hard":
        target = np.eye(CLASSES)[target.argmax(-1)]
    if expertise == "label":
        assert ONE.labels is not None
        target = np.eye(CLASSES)[ONE.labels.numpy()]
    # Cross-entropy = KL(target ‖ p) + H(target), p without temperature.
    untempered = [softmax(z.numpy(), axis=-1) for z in models]
    return np.stack(
        [rel_entr(target, p).sum(-1) + scipy_entropy(target, axis=-1) for p in untempered]
    )


@pytest.mark.parametrize("expertise", ["entropy", "pseudo_soft", "pseudo_hard", "label"])
def test_expertise_of_two_models(expertise: Any) -> None:
    routing = dawin(
        ONE, granularity="sample", expertise=expertise, temperature=0.6, base_temperature=2.0
    )
    h_z, h_f = uncertainty(expertise, [ONE.base, ONE.experts[0]], (2.0, 0.6))
    close(coefficients(routing)[:, 0], 1 / (1 + np.exp(h_f - h_z)))


@pytest.mark.parametrize("expertise", ["entropy", "pseudo_soft", "pseudo_hard", "label"])
def test_expertise_of_several(expertise: Any) -> None:
    expert_logits = dataclasses.replace(THREE, labels=ONE.labels)
    routing = dawin(expert_logits, granularity="sample", expertise=expertise, temperature=0.6)
    wanted = 0.9 * softmax(-uncertainty(expertise, list(THREE.experts), (0.6,) * 3), axis=0)
    close(coefficients(routing), wanted.T)


def test_only_the_oracle_reads_labels() -> None:
    blind = dataclasses.replace(ONE, labels=None)
    for expertise in ("entropy", "pseudo_soft", "pseudo_hard"):
        seen: Any = {"granularity": "sample", "expertise": expertise}
        assert not is_oracle(seen)
        assert torch.equal(dawin(ONE, **seen).codings, dawin(blind, **seen).codings)
    assert is_oracle({"expertise": "label"})
    with pytest.raises(InputError, match="'label' needs the expert_logits's labels; none given"):
        dawin(blind, expertise="label")


def test_clusters_of_two_models_are_a_beta_mixture() -> None:
    each = coefficients(dawin(ONE, granularity="sample")).double()[:, 0]
    routing = dawin(ONE, granularity="cluster", clusters=2, seed=4)
    fit = fit_beta(each, 2, 4)
    assert len(routing.codings) == 2
    close(coefficients(routing)[:, 0], fit.means[fit.assign, 0])
    hard = torch.stack([each[routing.assign == k].mean() for k in (0, 1)])
    assert (hard - routing.codings[:, 0, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("tasks", [2, 3])
def test_clusters_of_several_are_a_dirichlet_mixture(tasks: int) -> None:
    expert_logits = ExpertLogits(THREE.tasks[:tasks], THREE.experts[:tasks], THREE.base)
    each = coefficients(dawin(expert_logits, granularity="sample")).double() / (0.3 * tasks)
    routing = dawin(expert_logits, granularity="cluster", clusters=3, seed=1)
    fit = fit_dirichlet(each, 3, 1)
    torch.testing.assert_close(
        coefficients(routing).double(), 0.3 * tasks * fit.means[fit.assign], atol=1e-5, rtol=0
    )
    assert 1 < len(routing.codings) <= 3


def test_no_model_is_merged_that_no_row_goes_to() -> None:
    for expert_logits in (ONE, THREE):
        for clusters in (1, 2, 5, 40):
            routing = dawin(expert_logits, granularity="cluster", clusters=clusters)
            models = len(routing.codings)
            assert set(routing.assign.tolist()) == set(range(models))
            assert models <= clusters


def test_a_cluster_without_rows_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    means = torch.tensor([[0.2], [0.9], [0.5]], dtype=torch.float64)
    fit = Mixture(third, means, 9 * third, torch.tensor([2] * 20 + [1] * 40), 0.0)
    monkeypatch.setattr(sys.modules[dawin.__module__], "fit_beta", lambda *_: fit)
    routing = dawin(ONE, granularity="cluster")
    close(routing.codings.flatten(), [0.9, 0.5])
    assert routing.assign.tolist() == [1] * 20 + [0] * 40


@pytest.mark.parametrize("expert_logits", [ONE, THREE], ids=["beta", "dirichlet"])
def test_the_seed_reaches_the_mixture(expert_logits: ExpertLogits) -> None:
    one, two = (dawin(expert_logits, granularity="cluster", clusters=5, seed=s) for s in (0, 3))
    assert (coefficients(one) - coefficients(two)).abs().max() > 1e-4


def test_one_cluster_is_the_domain() -> None:
    for expert_logits in (ONE, THREE):
        one = dawin(expert_logits, granularity="cluster", clusters=1)
        close(one.codings, dawin(expert_logits).codings)


def test_select_takes_the_surer_model_and_the_base_on_ties() -> None:
    rows = two_rows()
    tied = torch.tensor([[0.0, 900, 0, 0]])  # as sure as the base's last row, of another class
    expert_logits = ExpertLogits(
        ("a",),
        torch.cat([rows.experts, tied[None]], dim=1),
        torch.cat([rows.base, rows.base[1:]]),
    )
    routing = dawin(expert_logits, combine="select")
    assert routing.logits is not None
    wanted = torch.stack([rows.experts[0, 0], rows.base[1], rows.base[1]])
    assert torch.equal(routing.logits, wanted)
    assert routing.codings.shape == (0, 1, 1)
    assert routing.assign.shape == (0,)
    assert routing.assign.dtype == torch.int64


def test_select_among_several_takes_the_first_of_equals_never_the_base() -> None:
    sure, unsure = torch.tensor([9.0, 0, 0]), torch.tensor([1.0, 0, 0])
    experts = torch.stack([torch.stack([unsure, sure]), torch.stack([sure, sure.flip(0)])])
    expert_logits = ExpertLogits(("a", "b"), experts, torch.tensor([[99.0, 0, 0]] * 2))
    routing = dawin(expert_logits, combine="select")
    assert routing.logits is not None
    assert torch.equal(routing.logits, torch.stack([sure, sure]))
    cube = dawin(THREE, combine="select", expertise="pseudo_soft").logits
    best = uncertainty("pseudo_soft", list(THREE.experts)).argmin(0)
    assert len(set(best.tolist())) == 3
    assert cube is not None
    assert torch.equal(cube, THREE.experts[torch.from_numpy(best), torch.arange(ROWS)])


@pytest.mark.parametrize("granularity", ["domain", "cluster", "sample"])
def test_outputs_of_two_models_mix_tempered_probabilities(granularity: Any) -> None:
    both: Any = {"granularity": granularity, "temperature": 0.7, "base_temperature": 1.5}
    both["offset"] = True
    share = coefficients(dawin(ONE, **both)).double().numpy()
    p_z, p_f = softmax(ONE.base.numpy() / 1.5, -1), softmax(ONE.experts[0].numpy() / 0.7, -1)
    routing = dawin(ONE, combine="outputs", **both)
    assert routing.logits is not None
    close(routing.logits.exp(), (1 - share) * p_z + share * p_f)
    assert len(routing.codings) == len(routing.assign) == 0


@pytest.mark.parametrize("granularity", ["domain", "sample"])
def test_outputs_of_several_leave_the_scale_aside(granularity: Any) -> None:
    share = coefficients(dawin(THREE, granularity=granularity)).double().numpy() / 0.9
    wanted = np.einsum("nt,tnc->nc", share, softmax(THREE.experts.numpy(), -1))
    routing = dawin(THREE, combine="outputs", granularity=granularity, scale=7.0)
    assert routing.logits is not None
    close(routing.logits.exp(), wanted)


@pytest.mark.parametrize("granularity", ["domain", "cluster", "sample"])
def test_another_order_of_tasks_is_another_order_of_coefficients(granularity: Any) -> None:
    order = [2, 0, 1]
    other = ExpertLogits(tuple(THREE.tasks[t] for t in order), THREE.experts[order], THREE.base)
    one, two = (dawin(expert_logits, granularity=granularity) for expert_logits in (THREE, other))
    close(coefficients(two), coefficients(one)[:, order])


@pytest.mark.parametrize("combine", ["weights", "outputs", "select"])
@pytest.mark.parametrize("granularity", ["domain", "cluster", "sample"])
@pytest.mark.parametrize("offset", [False, True])
def test_transductive_says_whether_other_rows_matter(
    combine: Any, granularity: Any, offset: bool
) -> None:
    if offset and combine == "select":
        return
    params: Any = {"combine": combine, "granularity": granularity, "offset": offset}
    half = slice(0, ROWS // 2)
    part = ExpertLogits(("a",), ONE.experts[:, half], ONE.base[half])
    if combine == "weights":
        whole, alone = coefficients(dawin(ONE, **params))[half], coefficients(dawin(part, **params))
    else:
        whole, alone = dawin(ONE, **params).logits[half], dawin(part, **params).logits  # type: ignore
    assert transductive(params) is not torch.allclose(whole, alone, atol=1e-6)


def test_defaults_are_those_of_the_signature() -> None:
    schema = parameters(dawin)
    bound = bind("dawin", schema, {})
    assert transductive(bound) == transductive({})
    assert is_oracle(bound) == is_oracle({})
    assert (bound["scale"], bound["clusters"], bound["granularity"]) == (0.3, 3, "domain")
    for wrong in ({"clusters": 0}, {"temperature": 0}, {"expertise": "maxlogit"}, {"seed": -1}):
        with pytest.raises(InputError, match=f"dawin: {next(iter(wrong))}: "):
            bind("dawin", schema, wrong)


def test_same_seed_same_bits_and_inputs_untouched() -> None:
    before = THREE.experts.clone(), THREE.base.clone()
    for combine in ("weights", "select", "outputs"):
        same: Any = {"granularity": "cluster", "seed": 2, "combine": combine}
        one, two = dawin(THREE, **same), dawin(THREE, **same)
        assert torch.equal(one.codings, two.codings)
        assert torch.equal(one.assign, two.assign)
        assert one.logits is two.logits or torch.equal(one.logits, two.logits)  # type: ignore
    assert torch.equal(THREE.experts, before[0])
    assert torch.equal(THREE.base, before[1])


def test_half_precision_logits_are_taken_in_float32() -> None:
    half = ExpertLogits(("a",), ONE.experts.half(), ONE.base.half())
    full = ExpertLogits(("a",), half.experts.double(), half.base.double())
    for expertise in ("entropy", "pseudo_soft"):
        same: Any = {"granularity": "sample", "expertise": expertise}
        one, two = dawin(half, **same).codings, dawin(full, **same).codings
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_cross_entropies_far_apart_stay_finite() -> None:
    base = torch.tensor([[0.0, 5000.0], [5000.0, 0.0], [0.0, 1.0]])
    expert_logits = ExpertLogits(("a",), -base[None], base, torch.tensor([0, 0, 1]))
    for params in ({"granularity": "cluster"}, {"offset": True, "granularity": "sample"}):
        routing = dawin(expert_logits, expertise="label", **params)
        assert routing.codings.isfinite().all()
        assert ((routing.codings >= 0) & (routing.codings <= 1)).all()
    close(
        coefficients(dawin(expert_logits, expertise="label", granularity="sample"))[:2, 0],
        [1.0, 0.0],
    )
    mixed = dawin(expert_logits, expertise="label", granularity="sample", combine="outputs").logits
    assert mixed is not None
    assert not mixed.isnan().any()


def test_a_coding_merges() -> None:
    vectors = TaskVectors.from_state_dicts(
        {"w": torch.ones(1)}, {"a": {"w": torch.tensor([4.0])}, "b": {"w": torch.tensor([2.0])}}
    )
    rows = two_rows()
    routing = dawin(ExpertLogits(("a", "b"), rows.experts.repeat(2, 1, 1), rows.base), expert="a")
    assert mix(vectors, routing.codings[:1])["w"].item() == pytest.approx(1 + 3 * 13 / 30)


NAN = torch.full((2, 4), math.nan)
ROWS_OF_TWO = two_rows()


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        ({}, {"expert": "b"}, "dawin: expert: unknown expert 'b'"),
        ({"tasks": ("a", "b")}, {}, "expert_logits: experts: shape [1, 2, 4]; [2, N, C] needed"),
        (
            {"experts": torch.zeros(1, 0, 4)},
            {},
            "expert_logits: experts: shape [1, 0, 4]; [1, N, C]",
        ),
        ({"base": torch.zeros(2, 3)}, {}, "expert_logits: base: shape [2, 3]; [2, 4] needed"),
        ({"base": NAN}, {}, "expert_logits: base: logits that are not finite"),
        ({"experts": NAN[None]}, {}, "expert_logits: experts: logits that are not finite"),
        (
            {"experts": torch.zeros(2, 2, 4), "tasks": ("a", "b")},
            {"offset": True},
            "dawin: offset: True; only False allowed with several experts",
        ),
        ({}, {"offset": True, "combine": "select"}, "only False allowed with combine 'select'"),
        (
            {"experts": torch.zeros(1, 1, 4), "base": torch.zeros(1, 4)},
            {"offset": True},
            "dawin: offset: True with 1 row; a deviation over rows needs 2",
        ),
        ({}, {"expertise": "label"}, "dawin: expertise: 'label' needs the expert_logits's labels"),
        (
            {"labels": torch.zeros(2)},
            {"expertise": "label"},
            "expert_logits: labels: float32 [2]; int64 [2] needed",
        ),
        (
            {"labels": torch.tensor([0, 4])},
            {"expertise": "label"},
            "expert_logits: labels: 4; int in [0, 3] allowed",
        ),
    ],
)
def test_wrong_input_is_one_clear_line(change: Any, params: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        dawin(dataclasses.replace(ROWS_OF_TWO, **change), **params)
    assert "\n" not in str(error.value)


def test_entropies_that_are_not_those_of_the_logits() -> None:
    given = torch.tensor([[0.0, 2.0], [1.0, 1.0], [3.0, 0.0]]).log1p()  # of base, a and b
    logits = torch.zeros(2, 2, 3)
    given_logits = ExpertLogits(("a", "b"), logits, logits[0], entropies=given)
    found = dawin(given_logits, granularity="sample", scale=0.5)
    wanted = torch.tensor([[1 / 2, 1 / 4], [1 / 2, 1]])
    close(coefficients(found), wanted / wanted.sum(1, keepdim=True))
    two = dawin(given_logits, granularity="sample", expert="b")
    close(coefficients(two)[:, 1], [1 / 4 / (1 + 1 / 4), 1 / (1 / 3 + 1)])
    with pytest.raises(InputError, match="temperature: 2; 1 allowed where entropies are not those"):
        dawin(given_logits, temperature=2)
    pseudo = dawin(given_logits, granularity="sample", expertise="pseudo_soft")
    close(coefficients(pseudo), 0.3 * torch.ones(2, 2))
