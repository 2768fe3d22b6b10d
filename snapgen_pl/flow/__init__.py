"""Rectified flow: path, timestep densities, guidance, samplers."""
