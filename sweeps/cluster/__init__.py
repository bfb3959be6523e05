"""Connecting to Ray: addresses, cluster files, and a local Ray."""
