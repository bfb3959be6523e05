import torch

from actors.pool.vectors_in_memory import flatten, unflatten
from fusion.task_vectors.coding import mix, one_hot
from fusion.task_vectors.task_vectors import TaskVectors


def vectors() -> TaskVectors:
    draw = torch.Generator().manual_seed(0)

    def state(step: float) -> dict[str, torch.Tensor]:
        return {
            "half": torch.randn(3, 5, generator=draw).to(torch.bfloat16),
            "scalar": torch.randn((), generator=draw),
            "count": torch.arange(3),
            "weight": torch.randn(2, 3, 4, generator=draw) * step,
            "double": torch.randn(7, generator=draw, dtype=torch.float64),
            "flag": torch.tensor([True, False, True]),
        }

    base = state(1.0)
    return TaskVectors.from_state_dicts(base, {"a": state(2.0), "b": state(3.0)})


def test_there_and_back_to_the_bit() -> None:
    original = vectors()
    flat = flatten(original)
    back = unflatten(flat)
    assert back.tasks == original.tasks
    assert list(back.base) == list(original.base)
    assert list(back.deltas) == list(original.deltas)
    for name, tensor in original.base.items():
        assert back.base[name].dtype == tensor.dtype
        assert torch.equal(back.base[name], tensor)
    for name, deltas in original.deltas.items():
        assert back.deltas[name].dtype == deltas.dtype
        assert torch.equal(back.deltas[name], deltas)


def test_tensors_are_views_of_few_arrays() -> None:
    flat = flatten(vectors())
    back = unflatten(flat)
    assert {array.shape for array in flat.deltas.values()} == {(2, 40), (2, 7)}
    array = flat.deltas[torch.float32]
    row = back.deltas["weight"][1]
    assert row.is_contiguous()
    start = array.__array_interface__["data"][0]
    assert start <= row.data_ptr() < start + array.nbytes
    assert flat.nbytes == sum(a.nbytes for a in (*flat.base.values(), *flat.deltas.values()))


def test_read_only_arrays_can_be_merged() -> None:
    original = vectors()
    flat = flatten(original)
    for array in (*flat.base.values(), *flat.deltas.values()):
        array.flags.writeable = False
    coding = one_hot(original.tasks, "b")
    merged = mix(unflatten(flat), coding)
    expected = mix(original, coding)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
