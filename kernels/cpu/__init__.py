"""The compiled epoch of the CPU, in Numba."""
