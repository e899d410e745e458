"""Recipes from snapshot folders, as the pipelines of diffusers are published."""
