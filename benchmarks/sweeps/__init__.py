"""Benchmarks of whole sweeps."""
