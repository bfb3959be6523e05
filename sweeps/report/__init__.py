"""The report: HTML page, terminal table, and texts."""
