"""Two processes draw, measure and write what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.image_writer import ImageWriter
from callbacks.sample_grid import SampleGrid
from tests import sample_run

pytestmark = pytest.mark.slow


def on_two_processes(verb: str, images: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.sample_run", verb, str(images), str(folder)]
    ran = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=240
    )
    assert ran.returncode == 0, ran.stderr


def test_two_processes_measure_and_draw_what_one_does(tmp_path: Path) -> None:
    images = sample_run.image_folder(tmp_path / "images")
    one, two = tmp_path / "one", tmp_path / "two"
    callbacks = [sample_run.metrics(samples=21), SampleGrid(every_n_images=1000)]
    sample_run.trainer(one, callbacks).fit(sample_run.module(), sample_run.data(images))
    on_two_processes("fit", images, two)
    left, right = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (one, two))
    controls = [record["metrics"]["kid_effnet"]["controls"]["16px"]["value"] for record in (left, right)]
    values = [record["metrics"]["kid_effnet"]["score"]["value"] for record in (left, right)]
    assert controls[1] == pytest.approx(controls[0], abs=1e-3)
    # The weights were summed in another order.
    assert values[1] == pytest.approx(values[0], rel=0.02)
    assert {**left, "metrics": None} == {**right, "metrics": None}
    assert [file.name for file in (two / "samples").iterdir()] == ["000000016.png"]


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    images = sample_run.image_folder(tmp_path / "images")
    one, two = tmp_path / "one", tmp_path / "two"
    sample_run.trainer(one, [ImageWriter()]).predict(sample_run.module(), sample_run.data(images, samples=11))
    on_two_processes("predict", images, two)
    manifests = [
        json.loads((folder / "samples/predict/manifest.json").read_text(encoding="utf-8")) for folder in (one, two)
    ]
    assert manifests[0]["images"] == manifests[1]["images"]
    assert len(list((two / "samples/predict").glob("*.png"))) == 11
