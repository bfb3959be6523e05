"""Output to terminals: progress, number formats, redaction, and stop signals."""
