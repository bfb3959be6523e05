"""Pinned experts in one process: evaluation, training, statistics, and recipes."""
