"""Layers whose weights are merged per sample: linear, norm, embedding and convolution."""
