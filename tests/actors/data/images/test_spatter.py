"""The parts of spatter: edges, histogram, layers."""

from __future__ import annotations

import numpy as np

from actors.data.images.spatter import edges, enlarged, evened, mud_layer, water_layer


def test_canny_finds_the_border_of_a_square() -> None:
    image = np.zeros((20, 20))
    image[6:14, 6:14] = 200
    found = edges(image, 50, 150)
    assert found[6:14, 5:7].any(axis=1).all()
    assert found[5:7, 6:14].any(axis=0).all()
    assert not found[8:12, 8:12].any()
    assert not found[:4].any()
    faint = np.zeros((20, 20))
    faint[:, 10:] = 20  # a step of 4·20 = 80: over the low, never over the high threshold
    assert not edges(faint, 50, 150).any()
    faint[0, 10:] = 60  # touches a strong one
    assert edges(faint, 50, 150)[:, 9:11].any(axis=1).all()


def test_histogram_equalisation_by_hand() -> None:
    values = np.array([[0, 0, 1, 3]], dtype=float)
    # Cumulative counts 2, 3, 3, 4: (n − 2)/(4 − 2)·255.
    assert evened(values).tolist() == [[0, 0, 128, 255]]
    same = np.full((2, 2), 5.0)
    assert evened(same).tolist() == same.tolist()


def test_no_drops_no_change() -> None:
    assert not water_layer(np.zeros((32, 32))).any()
    layer = np.random.default_rng(0).random((5, 7))
    assert enlarged(layer, (5, 7)) is layer
    assert enlarged(layer, (10, 14)).shape == (10, 14)


def test_mud_is_soft_inside_and_cut_outside() -> None:
    liquid = np.zeros((20, 20))
    liquid[5:15, 5:15] = 0.7
    layer = mud_layer(liquid, 0.6)
    assert layer[10, 10] == 1
    assert not layer[:5].any()
    assert layer[5, 5] == 0  # the corner keeps less than 0.8
    assert ((layer == 0) | (layer >= 0.8)).all()
