"""Our lowering beside coremltools' own route, on the same denoiser: ``python -m benchmarks.export --json FILE``.

Packages of both are evaluated on the same example, in float32 and in float16, and compared with torch. The 379 M
network takes half an hour of one core.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.export_graph import Precision, Size, denoiser_graph
from benchmarks.timing import Environment, environment
from snapgen_pl.export.ane import findings
from snapgen_pl.export.example import Example, example_of
from snapgen_pl.export.export_coreml import export_coreml
from snapgen_pl.export.gates import Measurement, measure
from snapgen_pl.export.onnx import export_onnx
from snapgen_pl.export.options import AttentionLayout, Options
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.whole_files import write_json

GIGA, MEGA = 1e9, 1e6


@dataclass(frozen=True)
class Route:
    """A way from torch to Core ML.

    Attributes:
        relative_l2: of the package in float32 against torch.
        psnr_db: of the package in float16 against torch.
        nonfinite: operations of it that gave NaN or infinities.
        largest: its largest value.
        operations: of it, how many of each type.
        violations: of the Neural Engine's rules, how many of each, exceptions left out.
        exceptions: from them, how many under each.
        package_mb: its size.
        convert_s: seconds that both packages took, without evaluating them.
        evaluate_s: seconds that evaluating the one in float16 took.
    """

    relative_l2: float
    psnr_db: float
    nonfinite: int
    largest: float
    operations: dict[str, int]
    violations: dict[str, int]
    exceptions: dict[str, int]
    package_mb: float
    convert_s: float
    evaluate_s: float


@dataclass(frozen=True)
class Report:
    """All routes.

    Attributes:
        environment: where, when and by which command it was made.
        parameters: of the network.
        onnx_mb: the ONNX file with its weights.
        onnx_s: seconds that it took, its check included.
        onnx_max_abs_error: of ONNX Runtime against torch.
        peak_gb: the most memory that our routes held, evaluating included.
        routes: by name.
    """

    environment: Environment
    parameters: int
    onnx_mb: float
    onnx_s: float
    onnx_max_abs_error: float
    peak_gb: float
    routes: dict[str, Route]


def main(
    size: Size = "full",
    attention: Sequence[AttentionLayout] = ("split", "fold"),
    baseline_numpy: Path | None = None,
    json: Path | None = None,
) -> None:
    """Measures our route in several layouts of attention, and coremltools' own.

    Args:
        size: full is text-to-image at 1024 px, small has 4 M parameters.
        attention: of our packages, one after the other.
        baseline_numpy: a folder with a numpy that coremltools' route works with; without one that route is left out.
        json: a file for the figures.
    """
    graph = denoiser_graph(size)
    routes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        example = example_of(graph)
        record = export_onnx(graph, folder / "denoiser.onnx", {}, example)
        for each in attention:
            target, options = folder / f"{each}.mlpackage", Options(attention=each)
            own = export_coreml(record.path, target, options, example)
            routes[f"snapgen_pl, {each}"] = _route(read_package(target), own.float32, own.float16, own.seconds)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        if baseline_numpy is not None:
            routes["coremltools"] = _baseline(size, folder, baseline_numpy, example)
    report = Report(
        environment("benchmarks.export"),
        record.parameters,
        record.bytes / MEGA,
        round(record.seconds, 1),
        record.max_abs_error,
        peak,
        routes,
    )
    Console().print(_table(report))
    if json is not None:
        write_json(asdict(report), json)


def _baseline(size: Size, folder: Path, numpy: Path, example: Example) -> Route:
    seconds, measured = 0.0, {}
    precisions: tuple[Precision, ...] = ("FLOAT32", "FLOAT16")
    for precision in precisions:
        path = folder / f"{precision}.mlpackage"
        words = [sys.executable, "-m", "benchmarks.export_baseline", "--size", size, "--precision", precision]
        places = os.pathsep.join([str(numpy.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*words, "--out", str(path)], env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True
        )
        if done.returncode:
            raise ValueError(f"coremltools' route failed:\n{done.stderr[-2000:]}")
        seconds += float(done.stdout.split()[-1])
        package = read_package(path)
        own = Example(_renamed(example.inputs, package.inputs), _renamed(example.expected, package.outputs))
        measured[precision] = measure(package, own)
    return _route(package, measured["FLOAT32"], measured["FLOAT16"], seconds)


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, object]) -> dict[str, Tensor]:
    """The other route names inputs and outputs as it likes, in their order."""
    return dict(zip(names, tensors.values(), strict=True))


def _route(package: Package, float32: Measurement, float16: Measurement, seconds: float) -> Route:
    found = findings(package)
    return Route(
        float32.difference.relative_l2,
        float16.difference.psnr_db,
        len(float16.nonfinite),
        float16.largest[0].largest,
        package.operation_counts,
        dict(Counter(finding.rule for finding in found if finding.exception is None)),
        dict(Counter(finding.exception for finding in found if finding.exception is not None)),
        package.stored_bytes / MEGA,
        round(seconds, 1),
        round(float16.seconds, 1),
    )


def _table(report: Report) -> Table:
    table = Table(title=f"{report.parameters / MEGA:.1f} M parameters; ONNX {report.onnx_mb:,.0f} MB")
    table.add_column("")
    for name in report.routes:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Route], str]] = {
        "float32, relative L2": lambda route: f"{route.relative_l2:.2e}",
        "float16, PSNR": lambda route: f"{route.psnr_db:.1f} dB",
        "operations": lambda route: f"{sum(route.operations.values()):,}",
        "rules broken": lambda route: _counts(route.violations) or "none",
        "excepted": lambda route: _counts(route.exceptions) or "none",
        "package": lambda route: f"{route.package_mb:,.0f} MB",
        "conversion": lambda route: f"{route.convert_s:,.0f} s",
    }
    for label, cell in rows.items():
        table.add_row(label, *(cell(route) for route in report.routes.values()))
    return table


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
