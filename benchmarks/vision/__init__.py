"""Benchmarks of image classifiers and their fine-tuning."""
