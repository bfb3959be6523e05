"""What fine-tunings are given beside their rows: starts, heads, synthetic rows."""
