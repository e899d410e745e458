"""Files and folders: targets, bundles, engine sets; written whole, and checked when read."""
