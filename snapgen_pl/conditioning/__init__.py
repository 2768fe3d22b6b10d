"""From labels and texts to context tokens."""
