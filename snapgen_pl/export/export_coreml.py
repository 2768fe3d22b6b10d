"""An ONNX file as a Core ML package that holds to the gates."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.export.ane import Tally, findings, tallies
from snapgen_pl.export.chunks import cut
from snapgen_pl.export.compress import compress, compressed_weights
from snapgen_pl.export.example import Example
from snapgen_pl.export.extra import require
from snapgen_pl.export.gates import Measurement, Progress, gate_a, gate_b, gate_c, gate_d, measure
from snapgen_pl.export.options import Options, Scheme
from snapgen_pl.export.package import Package, read_package


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
    example: Example,
    progress: Progress = iter,
) -> CoreMLRecord:
    """Lowers an ONNX file twice, to float32 for gate A and to float16 to keep.

    Where it is to be compressed, the float16 package is what is compressed, and is not kept.

    Args:
        onnx_file: the graph.
        path: of the package, ``<graph>.mlpackage``; what lies there where a gate does not hold is not to be kept.
        options: how; ``half`` is of no account.
        example: of the graph.
        progress: wraps the operations of each evaluation.

    Raises:
        ValueError: where a gate does not hold; names the operator that is to blame.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        _, float32, seconds = _lowered(onnx_file, whole, options._replace(half=False), gate_a, example, progress)
    half = options._replace(half=True)
    package, float16, more_seconds = _lowered(onnx_file, path, half, gate_b, example, progress)
    size, rules, counts = package.stored_bytes, tallies(findings(package)), package.operation_counts
    compressed = None
    if options.compress is not None and path.stem not in options.whole:
        compressed = _compressed(package, options.compress, example, progress)
    chunks = _cut(path, example, options.chunk_above)
    return CoreMLRecord(
        path.stem,
        path,
        size,
        half,
        counts,
        float32,
        float16,
        compressed,
        chunks,
        rules,
        seconds + more_seconds,
    )


def _lowered(
    onnx_file: Path,
    path: Path,
    options: Options,
    gate: Callable[[Measurement], str | None],
    example: Example,
    progress: Progress,
) -> tuple[Package, Measurement, float]:
    """A package that holds to a gate and to gate C, what was measured of it, and the seconds that it took to write."""
    require("coremltools")
    from snapgen_pl.export.mil import convert, find_culprit

    start = time.perf_counter()
    places = convert(onnx_file, path, options)
    seconds = time.perf_counter() - start
    package = read_package(path)
    measured = measure(package, example, progress)
    if complaint := gate_c(measured) or gate(measured):
        culprit = find_culprit(onnx_file, package, places, example.inputs, "float16" if options.half else "float32")
        raise ValueError(f"{path.stem} fails {complaint}" + (f"; {culprit}" if culprit else ""))
    return package, measured, seconds


def _compressed(package: Package, scheme: Scheme, example: Example, progress: Progress) -> CompressedRecord | None:
    """Puts a compressed package in the place of a package, unless there is nothing in it to compress."""
    start = time.perf_counter()
    path = package.path.with_name(f"{scheme}-{package.path.name}")
    compress(package, path, scheme)
    compressed = read_package(path)
    seconds = time.perf_counter() - start
    if not (weights := len(compressed_weights(compressed))):
        shutil.rmtree(path)
        return None
    measured = measure(compressed, example, progress)
    for complaint in filter(None, (gate_c(measured), gate_d(measured, scheme))):
        raise ValueError(f"{package.path.stem} fails {complaint}")
    record = CompressedRecord(scheme, weights, compressed.stored_bytes, measured, seconds)
    shutil.rmtree(package.path)
    path.rename(package.path)
    return record


def _cut(path: Path, example: Example, above: float) -> tuple[int, ...]:
    """Cuts a package in two where it is large; the bytes of both halves, or none."""
    package = read_package(path)
    if package.stored_bytes <= above * 1e6:
        return ()
    first, second = cut(package, path, example.inputs)
    return first.stored_bytes, second.stored_bytes
