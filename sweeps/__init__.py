"""The user's side: sweep files, Ray Tune, MLflow, reports, the command line."""
