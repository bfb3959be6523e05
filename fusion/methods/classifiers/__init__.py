"""Methods that combine classifiers on fixed embeddings: ensembles, probes, Tip-Adapter."""
