"""`sweeps train`: fine-tuning experts with Tune."""
