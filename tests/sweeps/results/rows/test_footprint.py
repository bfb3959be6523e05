"""Models, passes and parameters of each kind of row, by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusion.registry import METHODS
from sweeps.results.comparison import Row
from sweeps.results.rows import footprint as module
from sweeps.results.rows.footprint import footprint

POOL = SimpleNamespace(tasks=("a", "b", "c", "d"), parameters=1000)


@pytest.mark.parametrize(
    ("method", "params", "models", "passes", "extra", "masks"),
    [
        ("pretrained", {}, 1, 1, 0, 0),
        ("experts", {}, 4, 1, 3000, 0),
        ("ties", {}, 1, 1, 0, 0),
        ("fisher", {}, 1, 1, 0, 0),
        ("adamerging", {}, 1, 1, 0, 0),
        ("greedy_soup", {}, 1, 1, 0, 0),
        ("concrete_task_arithmetic", {}, 1, 1, 0, 0),
        ("emr", {}, 2, 1, 1000, 4000),
        ("tall_mask", {}, 2, 1, 1000, 4000),
        ("ensemble", {}, 4, 4, 3000, 0),
        ("ensemble", {"weights": [1, 0, 2, 0]}, 2, 2, 1000, 0),
        ("greedy_ensemble", {}, 4, 4, 3000, 0),
        ("linear_probe", {}, 1, 1, 0, 0),
        ("cafo", {}, 5, 5, 4000, 0),
        ("cafo", {"sources": ["a", "b"]}, 2, 2, 1000, 0),
        ("dawe", {}, 5, 1, 4000, 0),
        ("dawin", {}, 5, 5, 4000, 0),
        ("dawin", {"expert": "a"}, 2, 3, 1000, 0),
        ("dawin", {"combine": "outputs"}, 4, 4, 3000, 0),
        ("wemoe", {}, 3, 1, 2000, 0),
        ("ewemoe", {}, 1.2, 1, 200, 0),
    ],
)
def test_by_hand(method, params, models, passes, extra, masks, monkeypatch):
    monkeypatch.setattr(module, "mlp_parameters", lambda pool: 500)
    kind = METHODS[method].kind if method in METHODS else "reference"
    found = footprint(Row(method, kind, params), POOL, Path("no such file"))
    assert found == {"models": pytest.approx(models), "passes": passes,
                     "extra_parameters": extra, "mask_bits": masks}  # fmt: skip


def test_what_was_learned_counts_where_it_stays_beside_the_weights(tmp_path: Path):
    file = tmp_path / "learned.safetensors"
    save_file({"a|weight": np.zeros((3, 7)), "a|surface.grid": np.zeros(99)}, file)
    assert footprint(Row("linear_probe", "logits"), POOL, file)["extra_parameters"] == 21
    assert footprint(Row("adamerging", "adaptive"), POOL, file)["extra_parameters"] == 0
