"""Data sets: discovery of files, readers, class names, and tasks."""
