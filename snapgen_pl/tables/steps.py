"""Step distillation in small: generators of few steps made of one student of emoji (experiments/emoji/step)."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from snapgen_pl.experiments import experiments_dir
from snapgen_pl.tables import distillation
from snapgen_pl.tables.layout import Row, Table, number
from snapgen_pl.tables.records import RowRecord, Spread, machines, read_records, spread

FOLDER = experiments_dir() / "emoji" / "step"
STUDENT = "multilevel"
QUALITY = "kid_effnet"
# Of the student as it is, by the steps of its sampler.
MANY, UNDISTILLED = "student_28", {"student_28": 28, "student_8": 8, "student_4": 4, "student_2": 2}
ROWS = {
    MANY: "the student, 28 steps, guided",
    "student_8": "the student, 8 steps, guided",
    "student_4": "the student, 4 steps, guided",
    "student_2": "the student, 2 steps, guided",
    "eight_step": "8 steps: adversarial and S",
    "four_step": "4 steps: adversarial and S",
    "s_only": "4 steps: S alone",
    "adversarial_only": "4 steps: adversarial alone",
    "two_step": "2 steps: adversarial and S",
}
# The student in as many steps as a generator of it.
BEFORE = dict.fromkeys(ROWS, "student_4") | {"eight_step": "student_8", "two_step": "student_2"}
_FIRST = "four_step"
_ALIKE = ("precision", "decoder")


def files(row: str) -> tuple[Path, ...]:
    """What a row that is trained is declared by."""
    before = () if row == _FIRST else (FOLDER / f"{_FIRST}.yaml",)
    return distillation.FOLDER / f"{distillation.UNTAUGHT}.yaml", *before, FOLDER / f"{row}.yaml"


def recipe_files(row: str) -> tuple[Path, ...]:
    """What a row depends on: the student's recipe, and its own files where it is trained further."""
    student = distillation.recipe_files(STUDENT)
    return student if row in UNDISTILLED else (*student, *files(row))


RECIPES = {row: recipe_files(row) for row in ROWS}


def steps_table(reports: Path | None) -> Table:
    """How much of what few steps lose is won back, and what is lost of the samples' diversity."""
    folder = reports or experiments_dir() / "results" / "emoji_steps"
    runs = read_records(folder, RECIPES, _ALIKE)
    quality = {row: spread(runs[row], QUALITY) for row in ROWS}
    times = _milliseconds(folder)
    rows = [_row(row, runs[row], quality, times) for row in ROWS]
    header = ("row", QUALITY, "won back %", "judge top-1 %", "diversity", "ms an image", "training s", "seeds")
    return Table(rows, header, [_cells(row, runs[row], quality, times) for row in ROWS],
                 _notes([run for each in runs.values() for run in each]))  # fmt: skip


def won_back(row: str, quality: Mapping[str, Spread]) -> float | None:
    """(K_n - K) / (K_n - K_28): the share of what the student loses from 28 steps to a row's n that it has not lost."""
    lost, best, own = quality[BEFORE[row]].mean, quality[MANY].mean, quality[row].mean
    if row in UNDISTILLED or lost is None or best is None or own is None:
        return None
    return (lost - own) / (lost - best)


def _row(row: str, runs: Sequence[RowRecord], quality: Mapping[str, Spread], times: Mapping[str, float]) -> Row:
    top1, diversity = spread(runs, "judge_top1"), _diversity(runs)
    return {
        "row": ROWS[row],
        "seeds": len(runs),
        QUALITY: quality[row].mean,
        f"{QUALITY}_sd": quality[row].deviation,
        "won_back": won_back(row, quality),
        "judge_top1": top1.mean,
        "judge_top1_sd": top1.deviation,
        "diversity": diversity.mean,
        "diversity_sd": diversity.deviation,
        "milliseconds": times.get(row),
        "guidance": str(runs[0].report.drawing["guidance"]) if runs else None,
        "training_seconds": _seconds(row, runs),
        "hardware": machines(runs) or None,
    }


def _cells(row: str, runs: Sequence[RowRecord], quality: Mapping[str, Spread], times: Mapping[str, float]) -> list[str]:
    share = won_back(row, quality)
    return [
        ROWS[row],
        quality[row].cell(2),
        "" if share is None else f"{100 * share:.0f}",
        spread(runs, "judge_top1").cell(1, scale=100),
        _diversity(runs).cell(3),
        number(times.get(row), 0),
        number(_seconds(row, runs), 0),
        str(len(runs) or ""),
    ]


def _diversity(runs: Sequence[RowRecord]) -> Spread:
    return Spread.of([run.more["diversity"] for run in runs if "diversity" in run.more])


def _seconds(row: str, runs: Sequence[RowRecord]) -> float | None:
    return None if row in UNDISTILLED else Spread.of([run.training_seconds for run in runs]).mean


def _milliseconds(folder: Path) -> dict[str, float]:
    """Of an image, as the benchmark measured all rows in one run beside the folder of records."""
    file = folder.with_name(f"{folder.name}_speed.json")
    if not file.exists():
        return {}
    times = json.loads(file.read_text(encoding="utf-8"))["timings"]
    return {row: 1e3 * time["wall_median_s"] for row, time in times.items()}


def _notes(runs: Sequence[RowRecord]) -> str:
    if not runs:
        return "Nothing is measured yet; `python -m benchmarks.emoji_steps` trains the rows."
    report = runs[0].report
    beside = ", ".join(f"{name} {scores[QUALITY].value:.2f}" for name, scores in report.controls.items()
                       if QUALITY in scores)  # fmt: skip
    text = (
        f"{report.measurement['samples']} samples for held-out captions. The student is drawn in 28 steps by its own "
        "sampler and guidance, in fewer by Euler under the best of 1, 2 and 3; generators of few steps are not guided. "
        "Won back is the share of what the student loses from 28 steps to as few. Diversity is the mean pairwise LPIPS "
        f"(AlexNet) of 16 images of a held-out caption, over 20 captions. {QUALITY} beside images of known quality: "
        f"{beside}. An image is timed alone, on one core. Drawn on {machines(runs)}."
    )
    return textwrap.fill(text, 120)
