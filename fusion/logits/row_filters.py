"""Filters of synthetic rows: by a classifier's confidence, and by embeddings of real rows.

Axes: N synthetic rows, M real rows, C classes, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion.errors import InputError

CHUNK = 1024
"""Synthetic rows that are compared with the real ones at once."""


def confident(
    probabilities: Tensor, labels: Tensor, *, least: float | None = None, most: int | None = None
) -> Tensor:
    """Rows whose label has a probability above a threshold (CLIP filter).

    Args:
        probabilities: of a zero-shot classifier, [N, C].
        labels: int64 [N], in [0, C).
        least: the threshold, exclusive. Default: 1/C, that of the authors' code.
        most: rows of a class that are kept at most, the most probable ones; equal ones by their
            place. Default: all.

    Returns:
        bool [N], whether a row is kept.

    Raises:
        InputError: shapes that do not fit, or a label that is no class.

    Source: He et al. 2023, arXiv:2210.07574, §3.1, and its code. Deviation: the code draws the rows
    of a class at random if there are more than it needs, and fills up with less probable ones if
    there are fewer; neither is done here.
    """
    rows, classes = probabilities.shape
    check_labels(labels, rows, classes, "probabilities")
    own = probabilities.gather(1, labels[:, None])[:, 0]
    kept = own > (1 / classes if least is None else least)
    if most is None:
        return kept
    for label in range(classes):
        of_class = torch.nonzero(kept & (labels == label)).flatten()
        order = own[of_class].argsort(descending=True, stable=True)
        kept[of_class[order[most:]]] = False
    return kept


def apart(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Tensor:
    """Rows that are not nearer to a real row of another class than to one of their own (real
    filter).

    Nearness is the cosine of embeddings. A row whose class has no real row is kept.

    Args:
        features: of synthetic rows, [N, D], of any length.
        labels: int64 [N].
        real: of real rows, [M, D].
        real_labels: int64 [M].

    Returns:
        bool [N], whether a row is kept.

    Raises:
        InputError: shapes that do not fit.

    Source: He et al. 2023, arXiv:2210.07574, §3.2, which drops rows whose features are very close
    to those of real rows of other classes. Deviation: the paper gives no threshold; here it is the
    nearest real row of the row's own class.
    """
    if features.shape[1:] != real.shape[1:] or len(real) != len(real_labels):
        raise InputError(f"real rows {tuple(real.shape)}; synthetic rows {tuple(features.shape)}")
    check_labels(labels, len(features), int(max(labels.max(), real_labels.max())) + 1, "features")
    unit, others = (torch.nn.functional.normalize(each, dim=1) for each in (features, real))
    found = []
    for start in range(0, len(unit), CHUNK):
        part = slice(start, start + CHUNK)
        cosines, same = unit[part] @ others.T, labels[part, None] == real_labels[None, :]
        own = cosines.masked_fill(~same, -torch.inf).amax(1)
        other = cosines.masked_fill(same, -torch.inf).amax(1)
        found.append((own >= other) | ~same.any(1))
    return torch.cat(found)


def check_labels(labels: Tensor, rows: int, classes: int, what: str) -> None:
    """Raise InputError where labels are not one of `classes` for each row."""
    if labels.shape != (rows,):
        raise InputError(f"{what}: {rows} rows; labels {tuple(labels.shape)}")
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(f"{what}: labels up to {int(labels.max())}; {classes} classes")
