"""Engines, one module per backend."""
