"""A run as a pipeline of diffusers: the folder, what loads and draws from it, its model card."""
