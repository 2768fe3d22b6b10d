"""Two forms of rotary positions where the resolution changes, in small: ``python -m benchmarks.emoji_rope``.

One network learns emoji at 32 px; its averaged weights go on at 64 px, with integer positions and with scaled ones
(experiments/emoji/rope). Both meet the same images, times and noise. A run that was interrupted goes on where it was;
what came out is in experiments/results/emoji_rope.json.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonargparse import auto_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.rows import UnsampledRow
from benchmarks.timing import environment
from snapgen_pl.tables.records import recipe
from snapgen_pl.whole_files import write_json

FOLDER = Path("experiments/emoji/rope")
RESULT = Path("experiments/results/emoji_rope.json")
RUNS = Path("runs/emoji-rope")
BEFORE = "32px"
FORMS: Mapping[str, tuple[Path, ...]] = {
    "integer": (FOLDER / "32px.yaml", FOLDER / "integer.yaml"),
    "scaled": (FOLDER / "32px.yaml", FOLDER / "integer.yaml", FOLDER / "scaled.yaml"),
}


@dataclass(frozen=True)
class Curve:
    """What came of one form.

    Attributes:
        recipe: hash of what it was trained by, the stage before included.
        losses: L_task on held-out images by the steps since the change, of the averaged weights.
    """

    recipe: str
    losses: Mapping[int, float]


def main(json: Path = RESULT) -> None:
    """Trains both forms, and records them.

    Args:
        json: where to.
    """
    before = UnsampledRow(BEFORE, 0, (FOLDER / "32px.yaml",), recipe([FOLDER / "32px.yaml"]), RUNS / f"{BEFORE}-seed0")
    before.train()
    curves = {form: Curve(recipe(files), followed(form)) for form, files in FORMS.items()}
    record: dict[str, Any] = {
        "before": losses(before.folder),
        "forms": {form: asdict(curve) for form, curve in curves.items()},
        "environment": asdict(environment("benchmarks.emoji_rope")),
    }
    write_json(record, json)
    print(f"Written to {json}")


def followed(form: str) -> dict[int, float]:
    """The validation losses of a form, right after the change and later."""
    run = UnsampledRow(form, 0, FORMS[form], recipe(FORMS[form]), RUNS / f"{form}-seed0")
    run.train()
    with TemporaryDirectory() as folder:
        # After one step, whose learning rate is the warm-up's first, 0.
        once = replace(run, folder=Path(folder) / form)
        once.fit({"trainer.max_steps": 1, "trainer.val_check_interval": 1})
        (at_once,) = losses(once.folder).values()
    return {0: at_once} | losses(run.folder)


def losses(folder: Path) -> dict[int, float]:
    """The validation losses of a run's average, by the steps before each."""
    # Lightning numbers steps from 0.
    return {scalar.step + 1: scalar.value for scalar in EventAccumulator(str(folder)).Reload().Scalars("val/loss")}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
