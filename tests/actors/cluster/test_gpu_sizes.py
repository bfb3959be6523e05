"""What GPUs have free, asked without a CUDA context that stays."""

import subprocess

import pytest
import torch

from actors.cluster import limits
from actors.cluster.limits import gpu_sizes
from fusion.errors import InputError


def untouched(*_):
    """Whatever would make a context in this process."""
    raise AssertionError("torch.cuda in this process")


@pytest.fixture
def gpu(monkeypatch):
    """This process may use a GPU, and may not touch it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("mem_get_info", "device_count", "init", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, untouched)


def test_another_process_is_asked_for_what_is_free(gpu, monkeypatch):
    fake = "\n".join([
        "import types, sys, json",
        "cuda = types.SimpleNamespace(mem_get_info=lambda i: (30 + i, 80), device_count=lambda: 2)",
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)",
    ])  # fmt: skip
    monkeypatch.setattr(limits, "SIZES", fake + limits.SIZES)
    assert gpu_sizes() == [30, 31]


def test_none_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "run", None)
    assert gpu_sizes() == []


@pytest.mark.parametrize(
    "script", ["raise RuntimeError('CUDA error: out of memory')", "print('hello')", ""]
)
def test_gpus_that_cannot_be_asked_are_one_line(script, gpu, monkeypatch):
    monkeypatch.setattr(limits, "SIZES", script)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES= hides them") as caught:
        gpu_sizes()
    assert "\n" not in str(caught.value)


def test_a_gpu_that_does_not_answer(gpu, monkeypatch):
    monkeypatch.setattr(limits, "ANSWER", 0.2)
    monkeypatch.setattr(limits, "SIZES", "import time; time.sleep(9)")
    with pytest.raises(InputError, match="timed out"):
        gpu_sizes()
