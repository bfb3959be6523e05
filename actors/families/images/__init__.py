"""What families whose models read images share."""
