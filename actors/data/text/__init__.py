"""Texts: tokenizers, templates, GLUE, and rows of token ids on disk."""
