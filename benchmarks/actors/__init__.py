"""Benchmarks of shards, fleets and pools."""
