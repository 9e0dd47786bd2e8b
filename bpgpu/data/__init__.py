"""Data that ships with bpgpu."""
