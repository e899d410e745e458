"""Multi-exit networks, and how to load one. Needs torch."""
