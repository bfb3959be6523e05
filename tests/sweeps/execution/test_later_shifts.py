"""Shift sets that a finished sweep is given later: corrupted rows, and other data sets."""

import json

import pytest

from tests.sweeps.program import sweeps

METHODS = {"task_arithmetic": {"scale": {"grid": [0.3, 0.5]}}}


@pytest.mark.slow
def test_a_finished_sweep_is_measured_on_shift_sets_that_come_later(tiny_pool, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import CLIPModel

    from actors.artifacts.head_file import read_head
    from actors.families.clip.fine_tune import pixel_statistics, standardised

    spec = tiny_pool.write(tmp_path / "tiny.yaml", methods=METHODS)
    done = sweeps("run", spec, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/tiny"
    before = {path: path.stat().st_mtime_ns for path in (folder / "ledger").glob("*.json")}
    first = json.loads((folder / "comparison.json").read_text())["rows"]
    assert not any(row.get("shifts") for row in first)

    data = tiny_pool.root / "data"
    shifts = {
        "noise": {"corruption": "gaussian_noise", "severity": 2},
        "same": {"dataset": str(data / "lines"), "task": "lines"},
        "boxes": {"dataset": str(data / "blobs"), "task": "lines"},
    }
    tiny_pool.write(spec, methods=METHODS, shifts=shifts)
    refused = sweeps("run", spec, "--resume", cwd=tmp_path)
    assert refused.returncode == 2
    assert "shifts: added" in refused.stderr
    assert "--extend goes on with it and keeps finished trials" in refused.stderr
    done = sweeps("run", spec, "--extend", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before  # no trial was run again
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [row["method"] for row in first]
    for row in rows:
        assert set(row["shifts"]) == set(shifts)
        # Another data set belongs to one task; this one's test rows are the report rows.
        assert set(row["shifts"]["same"]) == {"acc/lines", "acc/mean", "nll/lines", "nll/mean"}
        for name in ("acc/lines", "nll/lines"):
            assert row["shifts"]["same"][name] == pytest.approx(row["test"][name], abs=1e-6)
        assert {"acc/blobs", "acc/tones"} < set(row["shifts"]["noise"])
    assert "Under shift" in (folder / "report.html").read_text()

    # The base on the other data set, by transformers alone but for the head.
    table = Dataset.from_parquet(str(data / "blobs/test.parquet"), cache_dir=str(tmp_path / "hf"))
    import numpy as np

    images = torch.from_numpy(np.stack([np.array(image) for image in table["image"]]))
    images, labels = images.permute(0, 3, 1, 2), torch.tensor(table["label"])
    base = CLIPModel.from_pretrained(tiny_pool.root / "base").eval()
    with torch.no_grad():
        pixels = standardised(images, *pixel_statistics(tiny_pool.root / "base"))
        hidden = base.vision_model(pixel_values=pixels).pooler_output
        z = torch.nn.functional.normalize(base.visual_projection(hidden), dim=1)
    heads = [read_head(path) for path in (tmp_path.parent / "cache/heads").glob("*")]
    assert heads  # of all tasks, by hash: one of them is that of lines
    loss = [float(torch.nn.functional.cross_entropy(z @ h.T, labels)) for h in heads if len(h) == 2]
    found = next(row for row in rows if row["method"] == "pretrained")["shifts"]["boxes"]
    assert min(abs(each - found["nll/lines"]) for each in loss) < 1e-4
