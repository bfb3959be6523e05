"""The machines of a cluster: nodes, limits, placement of shards, and metrics."""
