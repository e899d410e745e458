"""Compile time: networks become bundles, and bundles become engine sets."""
