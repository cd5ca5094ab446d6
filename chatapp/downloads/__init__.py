"""Checkpoints from a hub: what it offers, what fits this machine, and fetching that survives whatever happens."""
