"""Settings that must not be too small."""


def check_at_least(least: int, **settings: int | None) -> None:
    """Raises ValueError naming the first setting below ``least``; one that is None is not set."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
