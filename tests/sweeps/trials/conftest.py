"""The tiny pool's experts and data, for trials that learn without Ray."""

from pathlib import Path

import pytest

from actors.data.task import Splits, TaskSource, open_task
from actors.experts.embedding_cache import EmbeddingCache
from actors.experts.local import local_experts
from actors.experts.prepare_data import prepare_data
from actors.gate_features.extractor import open_extractor
from actors.pool.pool import open_pool
from sweeps.trials.artifact_store import LocalStore
from sweeps.trials.learn_coding import LearningInputs, sizes_of
from tests.sweeps.learning_pool import make_extractor
from tests.sweeps.trials.learning import NAMES, STEPWISE, Trials
from tests.tiny_pool import TinyPool


@pytest.fixture(scope="session")
def trials(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    root, cache = tiny_pool.root, tmp_path_factory.mktemp("learning")
    source = str(make_extractor(cache / "resnet"))
    pool = open_pool(str(root / "base"), {task: str(root / "experts" / task) for task in NAMES})
    tasks = {task: open_task(TaskSource(task, str(root / "data" / task))) for task in NAMES}
    extractor = open_extractor(source, "x")
    data = prepare_data(
        pool.base, tasks, Splits(), ["fit", "select", "report"], cache, extractors=[extractor]
    )
    identity = {task: task for task in (*NAMES, "pretrained")}
    experts = local_experts(pool, data, EmbeddingCache(cache / "e", identity))
    inputs = LearningInputs(
        pool.tasks, pool.groups, data, sizes_of(data), {(source, False): extractor},
        LocalStore(Path()), STEPWISE,
    )  # fmt: skip
    return Trials(experts, inputs, source)
