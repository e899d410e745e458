"""Measuring: time in turns, and the public facts of the machine."""
