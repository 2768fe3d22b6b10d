"""ONNX -> MIL, the language of Core ML. Importing it takes the ``export`` extra."""

# Each registers its operators.
from snapgen_pl.export.mil import attention, elementwise, indexing, norms, products, shapes  # noqa: F401
from snapgen_pl.export.mil.convert import convert
from snapgen_pl.export.mil.culprit import Culprit, find_culprit
from snapgen_pl.export.mil.graph import OnnxGraph, read_graph
from snapgen_pl.export.mil.lowering import RULES, Lowered, Place, lower

__all__ = [
    "RULES",
    "Culprit",
    "Lowered",
    "OnnxGraph",
    "Place",
    "convert",
    "find_culprit",
    "lower",
    "read_graph",
]
