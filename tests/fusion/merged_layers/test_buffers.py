"""Memory that is handed out again."""

import threading

import torch

from fusion.merged_layers.buffers import LARGE, scratch

CPU = torch.device("cpu")


def test_large_memory_is_this_thread_s_own_and_the_same_again():
    count = LARGE // 4
    first = scratch(1, count, torch.float32, CPU)
    assert scratch(2, count // 2, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert scratch(1, count, torch.float64, CPU).data_ptr() != first.data_ptr()
    found = []
    thread = threading.Thread(
        target=lambda: found.append(scratch(1, count, torch.float32, CPU).data_ptr())
    )
    thread.start()
    thread.join()
    assert found != [first.data_ptr()]
    larger = scratch(2, count, torch.float32, CPU)
    assert scratch(1, count, torch.float32, CPU).data_ptr() == larger.data_ptr()


def test_memory_of_an_inference_can_be_learned_with():
    with torch.inference_mode():
        scratch(3, LARGE, torch.float32, CPU).fill_(1.0)
    found = scratch(3, LARGE, torch.float32, CPU)
    x = torch.ones(LARGE, requires_grad=True)
    (found[0] * x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, found[0])


def test_small_memory_is_new():
    one, two = (scratch(1, 8, torch.float32, CPU) for _ in range(2))
    assert one.data_ptr() != two.data_ptr()
