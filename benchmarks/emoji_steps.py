"""Step distillation in small, really trained: ``python -m benchmarks.emoji_steps``, or ``make experiments``.

The student that ``benchmarks.emoji_distillation`` trains is measured at 28, 8 and 4 steps, and generators of few steps
are made of it; what has a record is not done again. ``python -m snapgen_pl table steps`` prints the records.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks import emoji_distillation
from benchmarks.rows import TrainedRow, check_rows
from benchmarks.timing import environment, interleave
from snapgen_pl.conditioning.condition import Texts
from snapgen_pl.config_files import class_value
from snapgen_pl.data.emoji import Emoji, EmojiSet
from snapgen_pl.data.requests import Request
from snapgen_pl.drawing import built_module
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.flow.samplers import Euler, Sampler
from snapgen_pl.metrics.diversity import diversity
from snapgen_pl.metrics.lpips import LPIPS
from snapgen_pl.metrics.sample_report import SampleReport, read_report
from snapgen_pl.modules.pretrain import Pretrain
from snapgen_pl.tables.records import recipe, record_file
from snapgen_pl.tables.steps import FOLDER, MANY, QUALITY, RECIPES, ROWS, STUDENT, UNDISTILLED, files
from snapgen_pl.trained_run import open_run
from snapgen_pl.whole_files import write_json

RESULTS = Path("experiments/results/emoji_steps")
SPEED = Path("experiments/results/emoji_steps_speed.json")
SHIFT = 2.0
SCALES = (1.0, 2.0, 3.0)  # of guidance in few steps, the best of which counts
PROMPTS, IMAGES = 20, 16


def main(rows: Sequence[str] = tuple(ROWS), seeds: Sequence[int] = (0,)) -> None:
    """Trains, measures and records rows.

    Args:
        rows: of the table.
        seeds: of the generators; their student is one.

    Raises:
        ValueError: for a row that there is no file of.
    """
    check_rows(rows, ROWS)
    student = emoji_distillation.trained(STUDENT, 0)
    student.train()
    for row in rows:
        if row in UNDISTILLED:
            measure_student(student, row)
    for seed in seeds:
        for row in rows:
            if row not in UNDISTILLED:
                trained(row, seed).make(RESULTS, measure=lambda folder: {"diversity": diversity_of(folder)})
    if not SPEED.exists():
        time_images(student.folder, trained("four_step", 0).folder, SPEED)


def trained(row: str, seed: int) -> TrainedRow:
    """A generator's run."""
    return TrainedRow(row, seed, files(row), recipe(RECIPES[row]), Path("runs/emoji-step") / f"{row}-seed{seed}")


def measure_student(student: TrainedRow, row: str) -> None:
    """Records the student as it is, at a row's number of steps, under the guidance that is best there."""
    if record_file(RESULTS, row, 0).exists():
        return
    model = drawn_from(student.folder)
    if row == MANY:
        sampler, guidances = replace(model.sampler, steps=UNDISTILLED[row]), [model.guidance]
    else:
        sampler, guidances = Euler(UNDISTILLED[row], SHIFT), [Guidance(scale) for scale in SCALES]
    report = min(_tested(student.folder, sampler, guidances), key=lambda report: report.values[QUALITY].value)
    guidance = next(each for each in guidances if repr(each) == report.drawing["guidance"])
    more = {"diversity": diversity_of(student.folder, sampler, guidance)}
    record = student.record()._replace(row=row, recipe=recipe(RECIPES[row]), report=report, more=more)
    print(f"Written to {record.write(RESULTS)}", flush=True)


def diversity_of(run: Path, sampler: Sampler | None = None, guidance: Guidance | None = None) -> float:
    """The mean pairwise LPIPS of 16 images of a held-out caption, over 20 of them."""
    model = drawn_from(run)
    captions = held_out_captions(PROMPTS)
    images = []
    for number, caption in enumerate(captions):
        positions = torch.arange(number * IMAGES, (number + 1) * IMAGES)
        images.append(model.sample(Request(Texts((caption,) * IMAGES, {}), positions), sampler, guidance).cpu())
    return diversity(LPIPS("alex"), torch.stack(images)).value


def held_out_captions(count: int) -> list[str]:
    """Captions of held-out emoji, evenly spread over all of them."""
    held_out = Emoji().open().validation
    assert isinstance(held_out, EmojiSet)
    return [held_out.caption(index * len(held_out) // count) for index in range(count)]


def drawn_from(run: Path) -> Pretrain:
    """What draws from a run's averaged weights."""
    source = open_run(str(run))
    model = built_module(source.config)
    assert isinstance(model, Pretrain)
    model.ready(source.folder, (), ())
    source.load(model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def time_images(student: Path, generator: Path, path: Path) -> None:
    """Times an image of each row, all in one run on one core: the network, by its sampler, and the decoder."""
    torch.set_num_threads(1)
    of_student, of_generator = drawn_from(student), drawn_from(generator)
    request = Request(Texts((held_out_captions(1)[0],), {}), torch.tensor([0]))
    guided, plain = Guidance(SCALES[-1]), Guidance()
    many = replace(of_student.sampler, steps=UNDISTILLED[MANY])
    subjects: dict[str, partial[Tensor]] = {MANY: partial(of_student.sample, request, many, of_student.guidance)}
    for row, steps in UNDISTILLED.items():
        if row != MANY:
            subjects[row] = partial(of_student.sample, request, Euler(steps, SHIFT), guided)
    for row, steps in {"eight_step": 8, "four_step": 4, "two_step": 2}.items():
        subjects[row] = partial(of_generator.sample, request, Euler(steps, SHIFT), plain)
    where = environment("benchmarks.emoji_steps")
    timings = interleave(subjects, rounds=9)
    record = {
        "protocol": "an image of a caption, batch 1, from its text to its pixels; interleaved rounds, one warm-up each",
        "environment": asdict(where),
        "timings": {row: asdict(timing) for row, timing in timings.items()},
    }
    write_json(record, path)


def _tested(run: Path, sampler: Sampler, guidances: Sequence[Guidance]) -> list[SampleReport]:
    """The report of the run's samples under each guidance."""
    drawn = [class_value(type(sampler), **asdict(sampler))]
    words = ["--run", str(run), "--config", str(FOLDER / "measure_student.yaml")]
    words += ["--trainer.callbacks.init_args.samplers", json.dumps(drawn)]
    words += ["--trainer.callbacks.init_args.guidances", json.dumps([asdict(each) for each in guidances])]
    subprocess.run([sys.executable, "-m", "snapgen_pl", "test", *words], check=True)  # what has a report is left alone
    reports = [read_report(file) for file in sorted((run / "reports").glob("*.json"))]
    wanted = {(repr(sampler), repr(guidance)) for guidance in guidances}
    return [report for report in reports if (report.drawing["sampler"], report.drawing["guidance"]) in wanted]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
