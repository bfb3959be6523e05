"""Sweep and training files for people and editors: reference pages, JSON schema, a new file."""
