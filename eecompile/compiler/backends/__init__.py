"""How segments become engines, one module a backend."""
