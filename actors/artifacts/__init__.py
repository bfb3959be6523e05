"""Files of learned results: codings, gates, heads, classifiers, routers, masks, statistics."""
