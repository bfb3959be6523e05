"""T5 (v1.0, v1.1, Flan) as a model family: all of the model is fused."""
