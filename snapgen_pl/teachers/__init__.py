"""Networks that students learn from: frozen, in eval, and nobody's parameters."""
