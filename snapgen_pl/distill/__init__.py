"""Losses of distillation and what combines them."""
