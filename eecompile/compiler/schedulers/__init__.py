"""Schedulers of diffusers, compiled to programs."""
