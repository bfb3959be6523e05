"""Logits: heads, entropies, labelled embeddings, and optimisers in the logit plane."""
