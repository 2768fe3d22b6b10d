"""An ONNX file as a Core ML package that holds to the gates, before it stands at its name."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from snapgen_pl.export.ane import Tally, findings, tallies
from snapgen_pl.export.chunks import chunk_paths, cut
from snapgen_pl.export.compress import compress, compressed_weights
from snapgen_pl.export.extra import require
from snapgen_pl.export.gates import Measurement, Progress, gate_a, gate_b, gate_c, gate_d, measure
from snapgen_pl.export.options import Options, Scheme
from snapgen_pl.export.package import Package, read_package

if TYPE_CHECKING:  # it takes the extra
    from snapgen_pl.export.mil import Converted


class CompressedRecord(NamedTuple):
    """A package whose weights were compressed.

    Attributes:
        scheme: how.
        weights: how many tensors.
        bytes: of all its files.
        measured: the package against torch: gates C and D.
        seconds: that compressing took.
    """

    scheme: Scheme
    weights: int
    bytes: int
    measured: Measurement
    seconds: float


class CoreMLRecord(NamedTuple):
    """A package that was written.

    Attributes:
        graph: its name.
        path: of the package.
        bytes: of all its files, its weights in float16.
        options: how it was lowered.
        operations: how many of each type, constants left out, the most frequent first.
        float32: the same in float32 against torch: gate A.
        float16: the package against torch: gates B and C.
        compressed: what was written in its place; None where its weights stayed as they were.
        chunks: the bytes of both halves that were written beside it; empty where it was not cut.
        rules: of the Neural Engine that are broken, or that something is excepted from.
        seconds: that lowering and saving both took, without evaluating them.
    """

    graph: str
    path: Path
    bytes: int
    options: Options
    operations: dict[str, int]
    float32: Measurement
    float16: Measurement
    compressed: CompressedRecord | None
    chunks: tuple[int, ...]
    rules: tuple[Tally, ...]
    seconds: float


def export_coreml(
    onnx_file: Path,
    path: Path,
    options: Options,
    inputs: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    progress: Progress = iter,
) -> CoreMLRecord:
    """Lowers an ONNX file twice, to float32 for gate A and to float16 to keep; whole or not at all.

    Where it is to be compressed, the float16 package is what is compressed, and is not kept.

    Args:
        onnx_file: the graph.
        path: of the package, ``<graph>.mlpackage``; an older one there is replaced once the new one has passed.
        options: how; ``half`` is of no account.
        inputs: an example.
        expected: what torch gives for it, by the names of outputs.
        progress: wraps the operations of each evaluation.

    Raises:
        ValueError: where a gate does not hold; names the operator that is to blame.
    """
    graph = path.stem
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        whole, half = part / f"float32-{path.name}", part / path.name
        converted, seconds = _written(onnx_file, whole, options._replace(half=False))
        package = read_package(whole)
        float32 = measure(package, inputs, expected, progress)
        _hold(graph, [gate_c(float32), gate_a(float32)], onnx_file, package, converted, inputs)
        shutil.rmtree(whole)
        converted, more_seconds = _written(onnx_file, half, options._replace(half=True))
        package = read_package(half)
        float16 = measure(package, inputs, expected, progress)
        _hold(graph, [gate_c(float16), gate_b(float16)], onnx_file, package, converted, inputs)
        size, rules, counts = package.stored_bytes, tallies(findings(package)), package.operation_counts
        compressed = None
        if options.compress is not None and graph not in options.whole:
            compressed = _compressed(package, options.compress, inputs, expected, progress)
        chunks = _cut(half, inputs, options.chunk_above)
        for place in (path, *chunk_paths(path)):
            shutil.rmtree(place, ignore_errors=True)
        for written in part.iterdir():
            written.rename(path.with_name(written.name))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return CoreMLRecord(
        graph,
        path,
        size,
        options._replace(half=True),
        counts,
        float32,
        float16,
        compressed,
        chunks,
        rules,
        seconds + more_seconds,
    )


def _written(onnx_file: Path, path: Path, options: Options) -> "tuple[Converted, float]":
    require("coremltools")
    from snapgen_pl.export.mil import convert

    start = time.perf_counter()
    converted = convert(onnx_file, options)
    converted.save(path)
    return converted, time.perf_counter() - start


def _compressed(
    package: Package,
    scheme: Scheme,
    inputs: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    progress: Progress,
) -> CompressedRecord | None:
    """Puts a compressed package in the place of a package, unless there is nothing in it to compress."""
    start = time.perf_counter()
    path = package.path.with_name(f"{scheme}-{package.path.name}")
    compress(package, path, scheme)
    compressed = read_package(path)
    seconds = time.perf_counter() - start
    if not (weights := len(compressed_weights(compressed))):
        shutil.rmtree(path)
        return None
    measured = measure(compressed, inputs, expected, progress)
    for complaint in filter(None, (gate_c(measured), gate_d(measured, scheme))):
        raise ValueError(f"{package.path.stem} fails {complaint}")
    record = CompressedRecord(scheme, weights, compressed.stored_bytes, measured, seconds)
    shutil.rmtree(package.path)
    path.rename(package.path)
    return record


def _cut(path: Path, inputs: Mapping[str, Tensor], above: float) -> tuple[int, ...]:
    """Cuts a package in two where it is large; the bytes of both halves, or none."""
    package = read_package(path)
    if package.stored_bytes <= above * 1e6:
        return ()
    first, second = cut(package, path, inputs)
    return first.stored_bytes, second.stored_bytes


def _hold(
    graph: str,
    complaints: list[str | None],
    onnx_file: Path,
    package: Package,
    converted: "Converted",
    inputs: Mapping[str, Tensor],
) -> None:
    complaint = next(filter(None, complaints), None)
    if complaint is None:
        return
    from snapgen_pl.export.mil import find_culprit

    half = any(declared.dtype == "FLOAT16" for declared in package.outputs.values())
    precision: Literal["float32", "float16"] = "float16" if half else "float32"
    culprit = find_culprit(onnx_file, package, converted.places, inputs, precision)
    raise ValueError(f"{graph} fails {complaint}" + (f"; {culprit}" if culprit else ""))
