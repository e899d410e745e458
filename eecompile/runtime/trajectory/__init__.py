"""Trajectories: the steps of a program, on the host or on a GPU."""
