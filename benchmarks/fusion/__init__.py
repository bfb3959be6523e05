"""Benchmarks of the mathematics."""
