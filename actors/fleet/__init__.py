"""Experts on a Ray cluster: replicas, the dispatcher, clients, and restarts."""
