"""Shards: blocks of consecutive segments, run as a pipeline."""
