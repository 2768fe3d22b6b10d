"""What our packages break of the Neural Engine's rules, by layout of attention: ``python -m benchmarks.export_rules``.

Packages in float16 are lowered and read, and with ``--evaluate true`` held against torch, in float32 too.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from benchmarks.export_graph import decoder_graph, denoiser_graph
from benchmarks.timing import Environment, environment
from snapgen_pl.export.ane import Tally, broken, findings, tallies
from snapgen_pl.export.example import example_of
from snapgen_pl.export.export_coreml import CoreMLRecord, export_coreml
from snapgen_pl.export.graphs import Graph
from snapgen_pl.export.mil import convert
from snapgen_pl.export.onnx import export_onnx
from snapgen_pl.export.options import AttentionLayout, Options
from snapgen_pl.export.package import Package, read_package
from snapgen_pl.whole_files import write_json

Network = Literal["full", "small", "decoder"]
GRAPHS: Mapping[Network, Callable[[], Graph]] = {
    "full": partial(denoiser_graph, "full"),
    "small": partial(denoiser_graph, "small"),
    "decoder": decoder_graph,
}


@dataclass(frozen=True)
class Counts:
    """A package.

    Attributes:
        operations: how many of each type.
        scores_mb: the largest scores of attention; 0 without any.
        rules: that are broken or excepted from.
        float32: the same program in float32 against torch; None where it was not evaluated.
        float16: the package against torch, likewise.
        chunks: the bytes of the halves that were cut and found to give the same; empty where none were.
    """

    operations: dict[str, int]
    scores_mb: float
    rules: list[dict[str, object]]
    float32: dict[str, float] | None = None
    float16: dict[str, float] | None = None
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """A network in several layouts.

    Attributes:
        environment: where, when and by which command it was made.
        network: which.
        parameters: of it.
        layouts: by name.
    """

    environment: Environment
    network: Network
    parameters: int
    layouts: dict[str, Counts]


def main(
    network: Network = "full",
    attention: Sequence[AttentionLayout] = ("split", "fold"),
    evaluate: bool = False,
    json: Path | None = None,
) -> None:
    """Lowers a network in several layouts, and counts.

    Args:
        network: the denoiser of text-to-image at 1024 px, one of 3 M parameters, or the decoder at 1024 px.
        attention: layouts.
        evaluate: holds each package against torch by the export's gates: the full one takes minutes and 8 GB.
        json: a file for the figures.
    """
    layouts: dict[str, Counts] = {}
    columns = [["operations", "transposes", "reshapes", "largest scores, MB", "rules broken", "excepted"]]
    with tempfile.TemporaryDirectory() as name:
        graph = GRAPHS[network]()
        example = example_of(graph)
        record = export_onnx(graph, Path(name) / "network.onnx", {}, example)
        for each in attention:
            target = Path(name) / f"{each}.mlpackage"
            held: dict[str, Any] = {}
            if not evaluate:
                convert(record.path, target, Options(attention=each))
            else:
                made = export_coreml(record.path, target, Options(attention=each), example)
                held = _held(made)
                print(f"{each}: {held}")
            package = read_package(target)
            rules = tallies(findings(package))
            counted = [tally.record() for tally in rules]
            layouts[each] = Counts(package.operation_counts, _scores_mb(package), counted, **held)
            columns.append(_cells(layouts[each], rules))
    table = Table("", *layouts, title=f"{network}: what breaks a rule of the Neural Engine, or is excepted")
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    Console().print(table)
    if json is not None:
        report = Report(environment("benchmarks.export_rules"), network, record.parameters, layouts)
        write_json(asdict(report), json)


def _held(made: CoreMLRecord) -> dict[str, Any]:
    against = {"float32": made.float32.difference._asdict(), "float16": made.float16.difference._asdict()}
    return {**against, "chunks": made.chunks}


def _scores_mb(package: Package) -> float:
    scores = [
        made.stored_bytes for each in package.operations if each.type == "softmax" for made in each.outputs.values()
    ]
    return max(scores, default=0) / 1e6


def _cells(counts: Counts, rules: Sequence[Tally]) -> list[str]:
    excepted = [f"{tally.total} {tally.rule} ({tally.exception})" for tally in rules if tally.exception is not None]
    moves = [str(counts.operations.get(kind, 0)) for kind in ("transpose", "reshape")]
    total = f"{sum(counts.operations.values()):,}"
    return [total, *moves, f"{counts.scores_mb:.1f}", broken(rules) or "none", "\n".join(excepted)]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
