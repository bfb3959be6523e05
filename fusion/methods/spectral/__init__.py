"""Methods that decompose task matrices: TSV-M, Iso-C and Iso-CTS, WUDI."""
