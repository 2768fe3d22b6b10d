"""Every figure of an export, as JSON and as a page to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from snapgen_pl.config_files import Value, as_value
from snapgen_pl.export.ane import Tally, broken
from snapgen_pl.export.ane_exceptions import EXCEPTIONS
from snapgen_pl.export.export_coreml import CompressedRecord, CoreMLRecord
from snapgen_pl.export.gates import MAX_RELATIVE_L2, MIN_COMPRESSED_DB, MIN_PSNR_DB, Measurement
from snapgen_pl.export.onnx import MAX_ERROR, OnnxRecord
from snapgen_pl.markdown import table
from snapgen_pl.provenance import describe_code, describe_machine

KILO, MEGA = 1e3, 1e6
_FIGURES = ("graph", "parameters, M", "ONNX, MB", "against torch", "package, MB", "float32", "float16", "largest value",
            "operations", "rules broken", "compressed", "halves, MB")  # fmt: skip
_RULES = ("graph", "rule of the Neural Engine", "broken, or excepted as", "values", "kB", "by", "the largest")


class GraphRecord(NamedTuple):
    """What was written of a graph.

    Attributes:
        onnx: its ONNX file.
        coreml: its package; None where there is none.
    """

    onnx: OnnxRecord
    coreml: CoreMLRecord | None

    def moved(self, old: Path, new: Path) -> "GraphRecord":
        """The record once its files lie in another folder."""
        onnx = self.onnx._replace(path=new / self.onnx.path.relative_to(old))
        if self.coreml is None:
            return GraphRecord(onnx, None)
        return GraphRecord(onnx, self.coreml._replace(path=new / self.coreml.path.relative_to(old)))


def report_json(records: Sequence[GraphRecord]) -> dict[str, Value]:
    """All figures."""
    content = {
        "limits": {
            "onnx_max_abs": MAX_ERROR,
            "float32_relative_l2": MAX_RELATIVE_L2,
            "float16_psnr_db": MIN_PSNR_DB,
            "compressed_psnr_db": MIN_COMPRESSED_DB,
        },
        "graphs": {record.onnx.graph: _graph(record) for record in records},
        "code": describe_code()._asdict(),
        "machine": describe_machine()._asdict(),
    }
    found = as_value(content)
    assert isinstance(found, dict)
    return found


def report_markdown(records: Sequence[GraphRecord]) -> str:
    """The figures that tell whether to trust the files."""
    rules = [_rule(record.coreml.graph, tally) for record in records if record.coreml for tally in record.coreml.rules]
    return (
        f"{table(_FIGURES, map(_row, records), 'lr')}\n\n"
        f"ONNX Runtime against torch: the largest difference, under {MAX_ERROR:.0e} of the largest value or of 1. "
        f"The package in float32 against torch: relative L2, under {MAX_RELATIVE_L2:.0e}. In float16: PSNR, "
        f"{MIN_PSNR_DB:.0f} dB or more, and no value on the way is NaN or infinite; the largest is told as a share of "
        "float16's largest too. Rules broken are those of the Neural Engine, counted by value. Compressed packages "
        f"stand in the place of those in float16, and have against torch at least {_limits()}. Halves lie beside the "
        "whole, and give together what it gives, bit for bit.\n"
        + (f"\n{table(_RULES, rules, 'lllrrll')}\n\n{_exceptions(records)}\n" if rules else "")
    )


def _rule(graph: str, tally: Tally) -> list[str]:
    worst = tally.worst[0]
    return [graph, tally.rule, tally.exception or "**broken**", f"{tally.total:,}", f"{tally.bytes / KILO:,.1f}",
            tally.doers, f"{worst.operation}: {worst.value}"]  # fmt: skip


def _exceptions(records: Sequence[GraphRecord]) -> str:
    met = {tally.exception for record in records if record.coreml for tally in record.coreml.rules}
    told = [f"- {name}: {exception.reason}." for name, exception in EXCEPTIONS.items() if name in met]
    return "\n".join(["kB are those of the values, or of the padding of a short last axis. Excepted are:", "", *told])


def _row(record: GraphRecord) -> list[str]:
    onnx, coreml = record
    cells = [onnx.graph, f"{onnx.parameters / MEGA:.1f}", f"{onnx.bytes / MEGA:.1f}", f"{onnx.max_abs_error:.1e}"]
    if coreml is None:
        return [*cells, *["-"] * 8]
    largest = coreml.float16.largest[0] if coreml.float16.largest else None
    return [
        *cells,
        f"{coreml.bytes / MEGA:.1f}",
        f"{coreml.float32.difference.relative_l2:.1e}",
        f"{coreml.float16.difference.psnr_db:.1f} dB",
        "-" if largest is None else f"{largest.largest:.4g} in {largest.type}, {largest.share:.2%}",
        str(sum(coreml.operations.values())),
        broken(coreml.rules) or "none",
        _compressed(coreml.compressed),
        " + ".join(f"{size / MEGA:.1f}" for size in coreml.chunks) or "-",
    ]


def _compressed(record: CompressedRecord | None) -> str:
    if record is None:
        return "-"
    return f"{record.scheme}: {record.bytes / MEGA:.1f} MB, {record.measured.difference.psnr_db:.1f} dB"


def _limits() -> str:
    return ", ".join(f"{needed:.1f} dB of {scheme}" for scheme, needed in MIN_COMPRESSED_DB.items())


def _graph(record: GraphRecord) -> dict[str, object]:
    onnx, coreml = record
    about: dict[str, object] = {"onnx": onnx._asdict() | {"path": f"onnx/{onnx.path.name}"}}
    if coreml is not None:
        compressed = coreml.compressed
        about["coreml"] = coreml._asdict() | {
            "path": f"coreml/{coreml.path.name}",
            "options": coreml.options._asdict(),
            "float32": _measurement(coreml.float32),
            "float16": _measurement(coreml.float16),
            "compressed": compressed and compressed._asdict() | {"measured": _measurement(compressed.measured)},
            "rules": [tally.record() for tally in coreml.rules],
        }
    return about


def _measurement(measured: Measurement) -> dict[str, object]:
    return {
        **measured.difference._asdict(),
        "largest": [extreme._asdict() | {"share": extreme.share} for extreme in measured.largest],
        "seconds": measured.seconds,
    }
