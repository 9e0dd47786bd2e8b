"""The GPU kernels in CUDA C++."""
