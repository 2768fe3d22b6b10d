"""The record of a measurement: values, and all that they depend on. Values of different measurements do not compare."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from snapgen_pl.config_files import as_value, differences
from snapgen_pl.metrics.sample_metric import Facts, Score
from snapgen_pl.provenance import describe_code, describe_machine
from snapgen_pl.whole_files import write_json

PIXELS = "uint8, clamp(127.5 x + 128, 0, 255) truncated"


@dataclass(frozen=True)
class SampleReport:
    """One set of images, measured.

    Attributes:
        model: what drew them: a run's name, or a file's.
        values: by name; one that depends on the number of images says it, as ``fid@5000``.
        controls: the same values for images of known quality, by their name.
        measurement: what must agree where values are to be compared: how many images, of which classes, their rounding,
            the reference, each network's weights and settings.
        drawing: sampler, guidance, seed, decoder; to be told beside a value.
        weights: whose images these are: which, their hash, how much they were trained.
        seconds: what drawing, decoding and taking features took, over all sessions and processes.
        made: date, command, code, hardware.
    """

    model: str
    values: Mapping[str, Score]
    controls: Mapping[str, Mapping[str, Score]]
    measurement: Facts
    drawing: Facts
    weights: Facts
    seconds: float
    made: Facts

    def write(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.content(), path)

    def content(self) -> dict[str, object]:
        """As JSON has it."""
        scores = {name: score._asdict() for name, score in self.values.items()}
        controls = {
            control: {name: score._asdict() for name, score in values.items()}
            for control, values in self.controls.items()
        }
        return asdict(self) | {"values": scores, "controls": controls}


def made(processes: int = 1) -> Facts:
    """What makes a report now: date, command, code, machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "snapgen_pl", *sys.argv[1:]]),
        "code": describe_code()._asdict(),
        "torch": torch.__version__,
        "hardware": {**describe_machine()._asdict(), "processes": processes},
    }


def read_report(path: Path) -> SampleReport:
    """A report as written.

    Raises:
        ValueError: naming the file, if it is none.
    """
    try:
        return parse_report(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no report of `test` or `report`: {error}") from error


def parse_report(content: object) -> SampleReport:
    """A report of its JSON.

    Raises:
        ValueError: if it is none.
    """
    try:
        fields = dict(content)  # type: ignore[call-overload]
        values = _scores(fields.pop("values"))
        controls = {control: _scores(scores) for control, scores in fields.pop("controls").items()}
        report = SampleReport(values=values, controls=controls, **fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a report's keys are missing or foreign: {error!r}") from error
    for name in ("measurement", "drawing", "weights", "made"):
        if not isinstance(facts := getattr(report, name), Mapping):
            raise ValueError(f"a report's {name} is {facts!r}, which holds no facts")
    return report


def _scores(content: Mapping[str, Mapping[str, float | None]]) -> dict[str, Score]:
    scores = {name: Score(**score) for name, score in content.items()}  # type: ignore[arg-type]  # checked below
    for name, score in scores.items():
        if not isinstance(score.value, int | float) or not isinstance(score.spread, int | float | None):
            raise ValueError(f"{name} is {score}, which is no number")
    return scores


def check_comparable(reports: Mapping[str, SampleReport], also: Sequence[str] = ()) -> None:
    """Holds what may stand in one column.

    Args:
        reports: by the name that messages shall give them.
        also: keys of ``drawing`` that must agree too, besides all of ``measurement``.

    Raises:
        ValueError: naming two reports and what differs between them.
    """
    names = list(reports)
    for name in names[1:]:
        first, other = reports[names[0]], reports[name]
        changes = differences(as_value(first.measurement), as_value(other.measurement))
        wrong = [f"{each.key} ({each.old} / {each.new})" for each in changes]
        wrong += [key for key in also if first.drawing.get(key) != other.drawing.get(key)]
        if wrong:
            raise ValueError(
                f"{names[0]} and {name} were measured differently and do not stand in one column: they differ in "
                f"{', '.join(wrong)}. Measure both alike"
            )
