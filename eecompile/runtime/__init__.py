"""The runtime: numpy, msgspec and one backend; never torch, onnx or polygraphy.

The names that callers need are exported by :mod:`eecompile` itself.
"""
