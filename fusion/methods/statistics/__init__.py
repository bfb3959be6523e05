"""Methods that need statistics of data: Fisher merging and RegMean."""
