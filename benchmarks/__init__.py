"""Benchmarks: ratios from one run each; `make bench`."""
