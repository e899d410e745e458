"""The weights of eecompile's recipe ``fashion-dit``: a file beside this one, and no code."""
