"""The packages of the extra ``export``, imported where they are needed."""

import logging
from types import ModuleType

from snapgen_pl import extra

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "coremltools", "sklearn")  # the last for k-means


def require_all() -> None:
    """Imports all that an export takes.

    Raises:
        ValueError: where one is not installed.
    """
    for name in PACKAGES:
        require(name)


def require(name: str) -> ModuleType:
    """Imports a package of the extra.

    Raises:
        ValueError: where it is not installed.
    """
    # It tells of what it would need to run models, on a Mac, and to convert from other packages.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    return extra.require(name, "export")
