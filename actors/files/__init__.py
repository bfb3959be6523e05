"""Reading and writing files: atomic writes, checksums, size limits, safe paths."""
