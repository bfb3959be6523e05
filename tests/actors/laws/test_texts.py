"""Methods over text classifiers, each with a head of its own: the same bits for every cut.

Rows are ragged, and a batch's padding is masked; else as in `test_same_bits.py`.
"""

from __future__ import annotations

import pytest

from actors.data.task import Splits, TaskSource, open_task
from actors.experts.prepare_data import prepare_data
from actors.pool.pool import open_pool, task_vectors
from actors.pool.vectors_on_disk import file_vectors, opened_vectors
from fusion.registry import METHODS
from tests.actors.laws.cases import CASES, Caller, Case, assert_same
from tests.actors.laws.parts import Parts, with_features
from tests.tiny_bert import make_models, write_texts

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"film": ("good", "bad", "fine"), "play": ("good", "bad"), "book": ("good", "bad")}
MIDDLE = ((0, 1), (1, 3), (3, 4))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("texts")
    bert = make_models(root)["bert"]
    base = bert.write(root / "base", encoder=True)
    experts = {
        task: str(bert.write(root / task, at + 5, classes=len(names)))
        for at, (task, names) in enumerate(CLASSES.items())
    }
    pool = open_pool(str(base), experts)
    heads = pool.family.own_heads(pool.base, pool.experts)
    tasks = {}
    for at, (task, names) in enumerate(CLASSES.items()):
        folder = write_texts(root / "data" / task, names, at, pairs=task == "play")
        columns = ["text", "second"] if task == "play" else None
        source = TaskSource(task, str(folder), head=heads[task], text=columns)
        tasks[task] = open_task(source, "text")
    data = prepare_data(pool.base, tasks, Splits(), ["fit", "select", "report"], root)
    return Parts(pool, with_features(data, root), root / "cache")


MORE = ("tall_mask 0", "regmean", "regmean_plusplus", "by task", "dawe, by task", "linear_probe",
        "greedy_ensemble")  # fmt: skip
"""Cases beside the typical ones: statistics and embeddings of real tokens alone."""


def tried(case: Case) -> bool:
    """Whether a case is typical or one more, and its method is defined without a cosine head."""
    method = METHODS.get(case.name)
    return (case.typical or case.name in MORE) and not (
        method is not None and "cosine_head" in method.requires
    )


@pytest.mark.parametrize("case", [case for case in CASES if tried(case)], ids=str)
def test_shards_and_files_give_the_same_bits(case: Case, parts: Parts) -> None:
    wanted = case.observe(parts, Caller(lambda: parts.local(f"{case} whole", blocks=(None,))))
    for name, vectors in (
        ("memory", task_vectors(parts.pool)),
        ("files", opened_vectors(file_vectors(parts.pool))),
    ):
        folder = f"{case} {name}"
        given = parts.local(folder, blocks=MIDDLE, vectors=vectors)
        assert_same(case.observe(parts, Caller(lambda given=given: given)), wanted)  # type: ignore[misc]
