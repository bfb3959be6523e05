"""MLflow: the tracking store, runs, pages, and logged models."""
