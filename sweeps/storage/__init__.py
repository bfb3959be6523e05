"""Durable storage: mirroring a sweep, fetching and watching it."""
