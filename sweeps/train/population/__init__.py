"""Population-based training of experts: spaces, members, the population."""
