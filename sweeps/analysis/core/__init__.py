"""What the parts of an analysis share: findings, figures, and evaluated points."""
