"""Files that the product writes and reads: atomic, checked, bounded."""
