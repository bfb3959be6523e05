"""Shared by the parts of an analysis: inputs, findings, figures, evaluated points."""
