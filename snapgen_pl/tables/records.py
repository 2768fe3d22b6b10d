"""The runs that a table's rows are made of, as they are recorded."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from snapgen_pl.digest import values_digest
from snapgen_pl.metrics.sample_report import SampleReport, check_comparable, parse_report
from snapgen_pl.whole_files import write_json

# Of how samples are drawn, besides all of how they are measured.
_ALIKE = ("sampler", "guidance", "precision", "decoder")
# Whatever else a callback is called, it may change what is trained.
_ONLY_LOOKS = ("callbacks.losses_by_time.", "callbacks.sample_grid.", "callbacks.sample_metrics.")


class RowRecord(NamedTuple):
    """One run of a row.

    Attributes:
        row: its name in file names.
        seed: of the run.
        recipe: hash of what it was trained by, see :func:`recipe`.
        validation: each ``val/<name>`` of the EMA weights, after the last step; ``loss`` is L_task.
        training_seconds: without validation and sampling.
        report: of its samples.
        by_time: ``validation`` in parts of [0, 1], by the time where each begins; where it was kept.
        more: what else was measured of it, by name.
    """

    row: str
    seed: int
    recipe: str
    validation: Mapping[str, float]
    training_seconds: float
    report: SampleReport
    by_time: Mapping[str, Mapping[str, float]] = {}
    more: Mapping[str, float] = {}

    def write(self, folder: Path) -> Path:
        """Writes ``<row>-seed<n>.json``, whole or not at all."""
        path = record_file(folder, self.row, self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self._asdict() | {"report": self.report.content()}, path)
        return path

    @property
    def machine(self) -> str:
        """What its samples were drawn on."""
        hardware = self.report.made["hardware"]
        assert isinstance(hardware, dict)
        if hardware["gpus"]:
            return f"gpu: {hardware['gpus']}"
        return f"cpu: {hardware['cpu']}, threads: {hardware['threads']}"


def record_file(folder: Path, row: str, seed: int) -> Path:
    """Where the record of a run lies among those of its table."""
    return folder / f"{row}-seed{seed}.json"


def recipe(files: Sequence[Path]) -> str:
    """SHA-256 over all that a row's files declare now, but its name and what only looks at the run."""
    return values_digest({"files": [_trained(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files]})


def _trained(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = {key: value for key, value in config.get("trainer", {}).items() if key != "val_check_interval"}
    for key in trainer.keys() & {"callbacks", "callbacks+"}:
        trainer[key] = [each for each in trainer[key] if not each["class_path"].startswith(_ONLY_LOOKS)]
    trainer = {key: value for key, value in trainer.items() if value != []}
    return {**{key: config.get(key) for key in ("model", "data", "ema")}, "trainer": trainer}


def read_records(
    folder: Path, rows: Mapping[str, Sequence[Path]], alike: Sequence[str] = _ALIKE
) -> dict[str, list[RowRecord]]:
    """The records of each row; no two of them measured differently, each by the recipe of today.

    Args:
        folder: of the records.
        rows: the files that each row's recipe is in.
        alike: what of how samples are drawn must be the same.

    Raises:
        ValueError: naming what is no record, is of another recipe, or does not compare.
    """
    records: dict[str, RowRecord] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            record = RowRecord(**content | {"report": parse_report(content["report"])})
            files = rows[record.row]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no record of a table's row: {error!r}") from error
        if record.recipe != recipe(files):
            raise ValueError(
                f"{file}: trained by another recipe than {', '.join(map(str, files))} declare "
                "now; delete it and its run, and run `make experiments`"
            )
        records[file.stem] = record
    check_comparable({name: record.report for name, record in records.items()}, alike)
    return {row: [record for record in records.values() if record.row == row] for row in rows}


class Spread(NamedTuple):
    """A value over the seeds of a row.

    Attributes:
        mean: of the seeds; None where the row has no run, or none that has the value.
        deviation: over the seeds; None of one.
    """

    mean: float | None
    deviation: float | None

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """That of a value of each seed."""
        mean = statistics.fmean(values) if values else None
        return Spread(mean, statistics.stdev(values) if len(values) > 1 else None)

    def differs(self, other: "Spread") -> bool | None:
        """Whether means differ by twice the larger deviation; None where one of them is of one seed."""
        if self.mean is None or other.mean is None or self.deviation is None or other.deviation is None:
            return None
        return abs(self.mean - other.mean) >= 2 * max(self.deviation, other.deviation)

    def cell(self, digits: int, scale: float = 1) -> str:
        """As a table shows it."""
        if self.mean is None:
            return ""
        after = "" if self.deviation is None else f" ± {scale * self.deviation:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{after}"


def spread(runs: Sequence[RowRecord], name: str) -> Spread:
    """That of a value of the reports."""
    return Spread.of([run.report.values[name].value for run in runs if name in run.report.values])


def machines(runs: Sequence[RowRecord]) -> str:
    """All that runs were drawn on."""
    return "; ".join(sorted({run.machine for run in runs}))
