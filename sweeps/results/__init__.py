"""Results on disk: the folder, the ledger, the comparison, and recipes."""
