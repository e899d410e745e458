"""Engines, one module a backend."""
