"""Comparing engines with one another and with the network that they were made of."""
