"""Methods that interpolate along arcs between models: SLERP, means on spheres."""
