"""Parts of every training loop: optimisation, averages, checkpoints, random numbers."""
