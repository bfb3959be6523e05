"""The fusion methods, one file each, grouped by what they need."""
