"""Where weights and data live: checkpoints, tasks, resident models, and Ray actors."""
