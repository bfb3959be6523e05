"""Toy tensors need no threads; where the machine is busy, waiting for them costs most of a test."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def toy(one_thread: None) -> None:
    """One torch thread for every test of this folder."""
