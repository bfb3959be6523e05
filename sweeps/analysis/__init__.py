"""`sweeps analyse`: angles, landscapes, robustness and averages of the models of a sweep."""
