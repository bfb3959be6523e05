"""Methods that need statistics of data: Fisher information and RegMean."""
