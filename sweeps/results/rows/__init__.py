"""Rows of the comparison: which trial is chosen, what a row discloses, what its model takes."""
