"""Logits: heads, entropy, labelled embeddings, and optimisers on cached features."""
