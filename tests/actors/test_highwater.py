"""Peak memory by call, of this very process."""

import torch

from actors.highwater import CLEAR, HighWater, peak_bytes

CPU = torch.device("cpu")
SIZE = 96 << 20


def hold(size: int = SIZE) -> None:
    """Touch some memory, and let it go."""
    assert bytearray(b"x") * size


def test_a_peak_is_of_its_own_call() -> None:
    assert CLEAR.exists()
    water = HighWater()
    with water.call("evaluate", CPU):
        hold()
        large = water.told(CPU, "ties")
    with water.call("evaluate", CPU):
        small = water.told(CPU, "ties")
    assert large - small > SIZE * 0.9


def test_what_teaching_held_is_told_once_and_of_methods_that_learn() -> None:
    water = HighWater()
    with water.call("gradients", CPU):
        hold()
    with water.call("evaluate", CPU):
        still = water.told(CPU, "task_arithmetic")
        taught = water.told(CPU, "adamerging")
        again = water.told(CPU, "adamerging")
    assert taught - still > SIZE * 0.9
    assert again < taught


def test_calls_side_by_side_share_a_mark() -> None:
    water = HighWater()
    with water.call("evaluate", CPU):
        hold()
        with water.call("evaluate", CPU):
            inner = water.told(CPU, "ties")
        assert water.told(CPU, "ties") >= inner
    with water.call("evaluate", CPU):
        assert inner - peak_bytes(CPU) > SIZE * 0.9
