"""Files of what was learned: codings, gates, heads, fitted classifiers, statistics."""
