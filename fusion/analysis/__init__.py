"""Analysis of fused models: Gram matrices, loss landscapes, robustness, and significance tests."""
