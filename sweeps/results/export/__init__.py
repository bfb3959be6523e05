"""Exports: a row of a sweep as a folder that `transformers` loads, with heads, tasks and card."""
