"""How segments become engines, one module per backend."""
