"""The GPU kernels in Numba-CUDA."""
