"""Weights published by others, drawn from by the same code that measures ours."""
