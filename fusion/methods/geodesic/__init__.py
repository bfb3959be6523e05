"""Methods that interpolate along arcs between models: SLERP and its kin."""
