"""Features that gates read: frozen encoders and the cache of their outputs."""
