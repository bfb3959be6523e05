"""However a method is computed, it gives the same bits.

One law over where task vectors are (memory, files, factors), kinds of method (`cases.py`), and ways
of computing: in one piece, cut in shards, broken off and resumed, with shards that die. Fleets
of processes, over the same cases: `tests/actors/fleet`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from actors.experts.local import LocalExperts
from actors.pool.pool import open_pool, task_vectors
from actors.pool.vectors_low_rank import factor_vectors, opened_factors
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from actors.shards.pipeline import LocalLink
from actors.shards.requests import ShardRequest
from actors.shards.shard import Shard
from fusion.task_vectors.task_vectors import TaskVectors
from tests.actors.checkpoints.adapter_folders import QV, write_adapter
from tests.actors.conftest import Tiny
from tests.actors.laws.cases import CASES, TYPICAL, Caller, Case, Found, assert_same
from tests.actors.laws.parts import Parts
from tests.actors.shards.world import make_world

pytestmark = pytest.mark.usefixtures("one_thread")

Cut = tuple[tuple[int, int], ...]

CUTS: list[Cut] = [
    tuple(itertools.pairwise((0, *inner, 4)))
    for count in range(1, 4)
    for inner in itertools.combinations((1, 2, 3), count)
]
MIDDLE: Cut = ((0, 1), (1, 3), (3, 4))
"""A first, a middle and a last shard."""


@dataclass(frozen=True)
class Backend:
    """Where task vectors are, of which pool."""

    parts: Parts
    vectors: TaskVectors

    def experts(self, folder: str, blocks: Sequence[tuple[int, int] | None]) -> LocalExperts:
        """Experts whose caches are in a folder of their own."""
        return self.parts.local(folder, blocks=blocks, vectors=self.vectors)


@pytest.fixture(scope="module")
def backends(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    """Whole models, one of which moved the projection too, in memory and in files; and adapters of
    several ranks, some of which bring tensors whole, as factors."""
    root = tmp_path_factory.mktemp("bits")
    world = make_world(tiny, root, projected=True)
    whole = Parts(world.pool, world.data, root / "whole")
    base = world.pool.base.folder
    brought = {"encoder.layers.1.mlp.fc1.bias": torch.ones(48)}
    folders = {
        "t0": write_adapter(root / "a0", base, seed=1, rank=3, layers=(*QV, "k_proj", "fc1")),
        "t1": write_adapter(root / "a1", base, seed=2, rank=1, layers=(*QV, "patch_embedding")),
        "t2": write_adapter(root / "a2", base, seed=3, whole=brought, dtype=torch.float16),
    }
    pool = open_pool(str(base), {task: str(folder) for task, folder in folders.items()})
    adapters = replace(whole, pool=pool, cache=root / "adapters")
    return {
        "memory": Backend(whole, task_vectors(whole.pool)),
        "files": Backend(whole, opened_vectors(file_vectors(whole.pool))),
        "factors": Backend(adapters, opened_factors(factor_vectors(pool))),
    }


@pytest.fixture(scope="module")
def wanted(backends: dict[str, Backend]) -> Callable[[Case, str], Found]:
    """What one piece in memory gives; of adapters, whose factors are never multiplied out, one
    piece of factors."""

    @cache
    def found(case: Case, backend: str) -> Found:
        given = backends[backend]
        return case.observe(given.parts, Caller(lambda: given.experts(f"{case} wanted", (None,))))

    return lambda case, backend: found(case, "memory" if backend == "files" else backend)


class Deaths(LocalLink):
    """Before one call of the middle shard it dies; one that has only just been built answers."""

    def __init__(self, parts: Parts, moment: int = 0) -> None:
        """`moment`: which of the shard's calls, from 1; 0: none, the calls are counted."""
        self.base, self.moment, self.calls = parts.pool.base, moment, 0
        self.living: dict[int, Shard] = {}

    def call(self, shard: Shard, request: ShardRequest, *given: Any) -> Any:
        """The result."""
        if shard.segments.start == MIDDLE[1][0]:
            self.calls += 1
            if self.calls == self.moment:
                self.living[id(shard)] = self.born_again(shard)
        return super().call(self.alive(shard), request, *given)

    def alive(self, shard: Shard) -> Shard:
        """The one that answers in a shard's place."""
        return self.living.get(id(shard), shard)

    def born_again(self, shard: Shard) -> Shard:
        """A shard with the same weights and nothing else, as Ray builds it again."""
        found = Shard(
            self.base, shard.vectors, shard.heads, block=MIDDLE[1], contexts=shard.capacity
        )
        found.statistics_root = shard.statistics_root
        return found


def same(
    case: Case,
    backend: Backend,
    wanted: Found,
    blocks: Sequence[tuple[int, int] | None],
    breaks: Sequence[int] = (),
    link: Deaths | None = None,
) -> None:
    """Check that a case gives the same bits in another way, and that its experts keep nothing of
    its calls."""
    started: list[LocalExperts] = []
    folder = f"{case} {id(started)}"

    def start() -> LocalExperts:
        started.append(backend.experts(folder, blocks))
        if link is not None:
            started[-1].runner.pipeline.link = link
        return started[-1]

    assert_same(case.observe(backend.parts, Caller(start, breaks)), wanted)
    shards = [shard for experts in started for shard in experts.runner.pipeline.shards]
    for shard in shards if link is None else [link.alive(shard) for shard in shards]:
        assert not shard.in_model.runs
        assert not any(p.requires_grad for m in shard.resident.modules for p in m.parameters())


READ_OFF = "classifier"
"""Kind that reads embeddings alone: one case of it is enough here."""


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.typical or case.kind != READ_OFF], ids=str
)
def test_cut_in_shards(case: Case, backends: Any, wanted: Any) -> None:
    same(case, backends["memory"], wanted(case, "memory"), MIDDLE)


SOME = ("ties 0", "layer sample", "wemoe", "dawin")
"""A survey, passes forward and backward, parameters in the shards, and a model a sample."""


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != MIDDLE], ids=str)
@pytest.mark.parametrize("case", [case for case in TYPICAL if case.name in SOME], ids=str)
def test_every_cut(case: Case, cut: Cut, backends: Any, wanted: Any) -> None:
    same(case, backends["memory"], wanted(case, "memory"), cut)


IN_ONE_PIECE = ("static", "one model a task", "given coding", "gradients by a form")


@pytest.mark.parametrize("case", [case for case in CASES if case.kind in IN_ONE_PIECE], ids=str)
def test_in_files(case: Case, backends: Any, wanted: Any) -> None:
    """In one piece; all kinds are resumed in files below, and cut."""
    same(case, backends["files"], wanted(case, "files"), (None,))


@pytest.mark.parametrize("backend", ["memory", "files", "factors"])
@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_resumed(case: Case, backend: str, backends: Any, wanted: Any) -> None:
    same(case, backends[backend], wanted(case, backend), MIDDLE, breaks=(2,))


@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_a_shard_dies(case: Case, backends: Any, wanted: Any) -> None:
    """The middle one, in the midst of the case's calls."""
    given, found = backends["memory"], wanted(case, "memory")
    counted = Deaths(given.parts)
    same(case, given, found, MIDDLE, link=counted)
    for moment in (2, counted.calls // 2):
        same(case, given, found, MIDDLE, link=Deaths(given.parts, moment))


@pytest.mark.parametrize("backend", ["files", "factors"])
@pytest.mark.parametrize("case", [case for case in TYPICAL if case.passes], ids=str)
def test_a_shard_dies_elsewhere(case: Case, backend: str, backends: Any, wanted: Any) -> None:
    given = backends[backend]
    same(case, given, wanted(case, backend), MIDDLE, link=Deaths(given.parts, 5))


def test_the_models_differ(wanted: Any) -> None:
    """Else a law that compares them would say little."""
    found = {case: wanted(case, "memory").get("logits") for case in TYPICAL}
    seen: dict[tuple[float, ...], Case] = {}
    for case, logits in found.items():
        if logits is not None:
            numbers = tuple(torch.cat([z.flatten() for z in logits.values()]).tolist())
            assert numbers not in seen, (case, seen[numbers])
            seen[numbers] = case
    assert len(seen) >= len(TYPICAL) - 1  # one is gradients alone
