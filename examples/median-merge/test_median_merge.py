"""The laws that every fusion method keeps, for the method of this package."""

from median_merge import METHODS

from fusion.testing import check_methods


def test_laws() -> None:
    """Each law of a static method, such as: the order of the experts does not matter."""
    check_methods(METHODS)
