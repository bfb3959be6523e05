"""Task vectors stored in bfloat16: the bits of float32 ones with the same values, for every method,
whole and in shards, and near those that were not rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from fusion.kinds import Static
from fusion.registry import METHODS
from fusion.task_vectors.coding import mix
from fusion.task_vectors.lazy import NarrowTensors, TensorStream, as_stored, widened
from fusion.task_vectors.sharded_reduce import run_surveys
from fusion.task_vectors.sparsify import Trim, trim_survey, trimmed
from fusion.task_vectors.task_vectors import TaskVectors
from tests.fusion import laws
from tests.fusion.laws import SCHEMAS, STATIC, examples, toy

TOLERANCE = {"float32": 0.0, "bfloat16": 5e-3}
"""Stored dtype -> most that a merged task vector is off, relative to its norm."""


def stored_in(dtype: str, vectors: TaskVectors) -> TaskVectors:
    """The same task vectors, stored in a dtype; those in float64 stay."""
    kind = getattr(torch, dtype)
    deltas = {k: d if d.dtype == torch.float64 else d.to(kind) for k, d in vectors.deltas.items()}
    return replace(vectors, deltas=widened(deltas))


def rounded(vectors: TaskVectors) -> TaskVectors:
    """Dense float32 task vectors with the values of bfloat16."""
    narrow = stored_in("bfloat16", vectors)
    return replace(vectors, deltas=dict(narrow.deltas))


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", STATIC)
def test_static_methods_have_the_bits_of_the_rounded_values(name, schema):
    vectors = toy(schema)
    narrow, wide = stored_in("bfloat16", vectors), rounded(vectors)
    names, method = list(vectors.base), cast(Static, METHODS[name])
    shards = [narrow.restrict(names[::2]), narrow.restrict(names[1::2])]
    for params in examples(name, vectors):
        wanted = laws.merge(name, wide, params)
        laws.assert_same_bits(laws.merge(name, narrow, params), wanted)
        inputs, rest = laws.split(params)
        parts = laws.merge_shards(method, shards, inputs, **rest)
        found = {key: part[key] for part in parts for key in part}
        laws.assert_same_bits({key: found[key] for key in names}, wanted)


CHOOSING = {
    "breadcrumbs", "tall_mask", "ties", "breadcrumbs_ties", "della", "della_linear", "sce", "ram",
    "arcee_fusion", "consensus",
}  # fmt: skip
"""Methods that keep entries by thresholds, of which a few of a toy model's are near one."""

DECOMPOSING = {"tsv_m": 5e-2, "nuslerp": 1e-2, "svc": 0.2, "core_space": 5e-2}
"""Methods that magnify what is rounded, or move less than the task vectors."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", STATIC)
def test_static_methods_are_near_the_values_that_were_not_rounded(name, dtype):
    vectors = toy()
    narrow, most = stored_in(dtype, vectors), TOLERANCE[dtype]
    most = most and DECOMPOSING.get(name, most)
    for params in examples(name, vectors):
        wanted, found = (laws.merge(name, each, params) for each in (vectors, narrow))
        for key, base in vectors.base.items():
            moved, off = (wanted[key] - base).abs(), (found[key] - wanted[key]).abs()
            if name in CHOOSING or params.get("merge") == "ties":  # DARE's, too
                far = off > 2 * most * vectors.deltas[key].abs().amax(0)
                # mergekit's DELLA scales a whole tensor by the sum of what is kept
                share = 0.5 if params.get("compat") == "mergekit" else 0.1
                assert float(far.float().mean()) <= share, key
            else:
                assert off.norm() <= most * moved.norm() + 1e-7 * base.norm(), key


@pytest.mark.parametrize("trim", [Trim(0.4), Trim(0.4, elect=True), Trim(dtype="float16")])
def test_codings_and_trims_have_the_bits_of_the_rounded_values(trim):
    vectors = toy()
    narrow, wide = stored_in("bfloat16", vectors), rounded(vectors)
    draw = torch.Generator().manual_seed(0)
    coding = torch.rand(1, len(vectors.tasks), len(vectors.groups), generator=draw)
    laws.assert_same_bits(mix(narrow, coding), mix(wide, coding))
    small, large = (
        trimmed(each, trim, run_surveys([trim_survey(each, trim)])) for each in (narrow, wide)
    )
    laws.assert_same_bits(mix(small, coding), mix(large, coding))
    assert {each.dtype for each in as_stored(small.deltas).values()} == {
        torch.bfloat16 if trim.dtype == "float32" else torch.float16
    }


def test_they_are_read_in_float32_and_passed_on_as_they_are():
    vectors = toy("mixed")
    deltas = stored_in("bfloat16", vectors).deltas
    assert isinstance(deltas, NarrowTensors)
    kinds = {"block.1.weight": torch.float64}
    for name, tensor in deltas.items():
        assert tensor.dtype == deltas.outlined(name).dtype == kinds.get(name, torch.float32)
        assert deltas.held(name).dtype == kinds.get(name, torch.bfloat16)
    part = deltas.some(["block.0.bias", "none"])
    assert list(part) == ["block.0.bias"]
    assert isinstance(part, NarrowTensors)
    [group] = TensorStream(part)
    assert [tensor.dtype for tensor in group] == [torch.bfloat16]
    assert widened(vectors.deltas) is vectors.deltas
