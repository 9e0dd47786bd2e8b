"""The engines of NVIDIA GPUs: one epoch and its steps, two libraries that launch the kernels."""
