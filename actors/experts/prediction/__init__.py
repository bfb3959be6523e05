"""From a recipe to predictions of rows: of all of them, raced, and timed."""
