"""SnapGen in PyTorch Lightning: a text-to-image model small enough for a phone."""

__version__ = "0.1.0"
