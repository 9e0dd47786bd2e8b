"""The arithmetic of bpgpu: formulas and kernels, with no networks and no devices. It imports nothing from `bpgpu`."""
