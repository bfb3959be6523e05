"""What a user touches: sweep files, Tune, MLflow, reports, the command line."""
