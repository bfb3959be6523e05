"""Temperature calibration against an independent minimiser, and its bounds."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize_scalar

from fusion.errors import InputError
from fusion.logits.calibration import calibrated_beta

C = 5


def test_beta_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, C, generator=generator) * 2
    labels = torch.multinomial((z * 0.7).softmax(-1), 1, generator=generator)[:, 0]
    found = calibrated_beta(z, labels)
    assert found == pytest.approx(0.7, rel=0.1)
    # Logits three times as large need a third of it.
    assert calibrated_beta(3 * z, labels) == pytest.approx(found / 3, rel=1e-5)

    def loss(beta: float) -> float:
        p = torch.log_softmax(beta * z.double(), -1)
        return -float(p[torch.arange(3000), labels].mean())

    independent = minimize_scalar(loss, bracket=(0.5, 1.0)).x
    assert found == pytest.approx(independent, rel=1e-5)


def test_beta_stops_at_its_bounds() -> None:
    z = torch.eye(3)
    assert calibrated_beta(z, torch.arange(3)) == pytest.approx(100)
    assert calibrated_beta(z, torch.tensor([1, 2, 0])) == pytest.approx(0.01)


def test_wrong_bounds() -> None:
    with pytest.raises(InputError, match="0 < low < high"):
        calibrated_beta(torch.eye(2), torch.arange(2), low=1.0, high=0.5)
