"""Packages with compressed weights, which are decompressed as they are used.

``palette8`` and ``palette6`` store 256 or 64 values a weight, found by k-means, and a number of 8 or 6 bits an element;
``int8`` stores integers of 8 bits and a scale an output channel. coremltools does it.

Left float16 are weights of at most 2,048 elements, vectors, constants that are no weights (tables of positions), and
the convolutions by which latents and images enter and leave the graph: what they round is seen in every pixel.
coremltools' ``enable_per_channel_scale`` is not used: its version 9.0 corrupts weights that it should leave alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from snapgen_pl.export.constant import TensorType
from snapgen_pl.export.extra import require
from snapgen_pl.export.options import Scheme
from snapgen_pl.export.package import Operation, Package
from snapgen_pl.export.program import load_program, save_changed

METADATA = "snapgen_pl.compressed"  # under which a package says its scheme
_WEIGHED = ("conv", "conv_transpose", "linear", "matmul", "gather")  # operations whose constants are weights


def compress(package: Package, path: Path, scheme: Scheme) -> None:
    """Writes a package with compressed weights; all else of it is as it was.

    Args:
        package: with weights in float16.
        path: to write to.
        scheme: how.
    """
    name, config = _pass(scheme)
    settings = require("coremltools.optimize.coreml").OptimizationConfig(
        op_type_configs=dict.fromkeys(_WEIGHED, config), op_name_configs=dict.fromkeys(kept_whole(package))
    )
    passes = {f"compression::{name}": {"config": settings}}
    save_changed(load_program(package), package, path, passes, {METADATA: scheme})


def compressed_weights(package: Package) -> list[Operation]:
    """The operations that decompress weights."""
    return [operation for operation in package.operations if operation.type.startswith("constexpr_")]


def kept_whole(package: Package) -> list[str]:
    """The convolutions that are the first from an image or latents, or the last before one, by name."""
    return [*_first(package.operations, _images(package.inputs)), *_last(package.operations, _images(package.outputs))]


def _pass(scheme: Scheme) -> tuple[str, Any]:
    optimize = require("coremltools.optimize.coreml")
    if scheme == "int8":
        config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_channel")
        return "linear_quantize_weights", config
    return "palettize_weights", optimize.OpPalettizerConfig(mode="kmeans", nbits=int(scheme.removeprefix("palette")))


def _images(values: Mapping[str, TensorType]) -> set[str]:
    return {name for name, declared in values.items() if len(declared.shape) == 4}


def _first(operations: Iterable[Operation], reached: set[str]) -> list[str]:
    found = []
    for operation in operations:
        if reached.isdisjoint(operation.reads):
            continue
        if operation.type == "conv":
            found.append(operation.name)
        else:
            reached |= operation.outputs.keys()
    return found


def _last(operations: tuple[Operation, ...], needed: set[str]) -> list[str]:
    found = []
    for operation in reversed(operations):
        if needed.isdisjoint(operation.outputs):
            continue
        if operation.type == "conv":
            found.append(operation.name)
        else:
            needed |= operation.reads
    return found
