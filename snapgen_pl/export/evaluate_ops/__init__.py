"""Core ML's operations in torch, written from their documentation: one function each, fp32 inside."""

from snapgen_pl.export.evaluate_ops.arguments import Function
from snapgen_pl.export.evaluate_ops.compressed import COMPRESSED
from snapgen_pl.export.evaluate_ops.elementwise import ELEMENTWISE
from snapgen_pl.export.evaluate_ops.indexing import INDEXING
from snapgen_pl.export.evaluate_ops.products import PRODUCTS
from snapgen_pl.export.evaluate_ops.reductions import REDUCTIONS
from snapgen_pl.export.evaluate_ops.shapes import SHAPES

OPERATIONS: dict[str, Function] = {
    **ELEMENTWISE,
    **PRODUCTS,
    **REDUCTIONS,
    **SHAPES,
    **INDEXING,
    **COMPRESSED,
}
