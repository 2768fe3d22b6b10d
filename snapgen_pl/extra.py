"""Packages that come with an extra of this one, imported where they are needed."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an extra.

    Args:
        module: its name.
        extra: the one that it comes with.

    Raises:
        ValueError: where it, or what it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Quoted, for zsh would look for files of that pattern.
        raise ValueError(f"{error.name} is not installed; run `pip install 'snapgen-pl[{extra}]'`") from error
