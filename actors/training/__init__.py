"""Parts of every training loop: losses, augmentation, optimisation, checkpoints."""
