"""Trials under Ray Tune: searchers, schedulers, and trainables."""
