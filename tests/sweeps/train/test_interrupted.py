"""Ctrl-C in the middle of `sweeps train`: what has ended stays, and the same command goes on."""

import json
import os
import signal
import time

import pytest
import torch
import yaml

from sweeps.train.ingredients import read_results
from tests.sweeps.train.test_run import command, finished, spec


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_while_the_last_trials_run(tiny_pool, tmp_path):
    """As many trials as cores, so that none is left to suggest: it must not pass for the end."""
    rates = [1e-4 * (at + 1) for at in range(len(os.sched_getaffinity(0)))]
    search = {"epochs": 300, "batch_size": 8, "learning_rate": {"grid": rates}}
    out = tmp_path / "out"
    content = spec(tiny_pool, out, base=str(tiny_pool.root / "base"), keep="all", finetune=search)
    del content["pretrain"], content["tasks"]["tones"]
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(content))
    driver = command(file)
    while len(list(out.glob("trained/*/state.pt"))) < len(rates):
        assert driver.poll() is None, "ended before it could be interrupted"
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    began = time.monotonic()
    said = driver.communicate(timeout=90)[0]
    # Tune itself gives trials that do not listen ten seconds.
    assert time.monotonic() - began < 60
    assert driver.returncode == 130, said
    assert f"interrupted; what has ended is kept. Go on with:\nsweeps train {file}" in said
    assert "Traceback" not in said
    assert not (out / "pool.yaml").exists()
    assert not (out / "ingredients").exists()
    states = sorted(out.glob("trained/*/state.pt"))
    steps = [torch.load(path, weights_only=True)["step"] for path in states]  # whole files
    assert len(steps) == len(rates)
    assert min(steps) >= 1
    for path in out.glob("trained/*.json"):
        json.loads(path.read_text())
    finished(command(file))
    results = read_results(out, "lines")
    assert len(results) == len(rates)
    assert not any(each.stopped for each in results)
    assert len(list(out.glob("ingredients/lines/*/model.safetensors"))) == len(rates)
    assert not list(out.glob("trained/*/state.pt"))
