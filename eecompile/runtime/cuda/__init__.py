"""Running on NVIDIA GPUs: memory, kernels, and trajectories that stay on the device.

- :mod:`eecompile.runtime.cuda.device`: what is asked of a GPU, and how cuda.core does it.
- :mod:`eecompile.runtime.engines.device`: what engines on a GPU share, whatever evaluates.
- :mod:`eecompile.runtime.trajectory.device`: the steps of a program on such an engine.
- ``kernels.cu``: what is computed between evaluations; ``kernels.ptx`` is made of it.
"""
