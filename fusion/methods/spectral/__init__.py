"""Methods on singular values and directions of task matrices: TSV-M, Iso-C, Iso-CTS, WUDI."""
