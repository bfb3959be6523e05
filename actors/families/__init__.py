"""Model families: what the system must know of an architecture."""
