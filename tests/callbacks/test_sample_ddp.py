"""Two processes draw, measure and write what one does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from callbacks.image_writer import ImageWriter
from callbacks.sample_grid import SampleGrid
from snapgen_pl.metrics.image_sets import open_images
from snapgen_pl.metrics.sample_report import read_report
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
    left, right = (read_report(folder / "metrics.json") for folder in (one, two))
    # Summed over two processes, the gradients and so the weights differ in their last bits.
    assert right.controls["16px"]["kid_effnet"].value == left.controls["16px"]["kid_effnet"].value
    assert right.values["kid_effnet"].value == pytest.approx(left.values["kid_effnet"].value, rel=0.02)
    assert right.measurement == left.measurement
    assert right.drawing == left.drawing
    assert [file.name for file in (two / "samples").iterdir()] == ["000000016.png"]


def test_two_processes_test_as_one_does_to_the_bit(tmp_path: Path) -> None:
    images = sample_run.image_folder(tmp_path / "images")
    one, two = tmp_path / "one", tmp_path / "two"
    sample_run.trainer(one, [sample_run.metrics(keep="npz")]).test(sample_run.module(), sample_run.data(images))
    on_two_processes("test", images, two)
    (left,), (right,) = ([read_report(file) for file in (folder / "reports").iterdir()] for folder in (one, two))
    assert replace(right, model="one", seconds=0, made={}) == replace(left, seconds=0, made={})
    (kept,), (again,) = (list((folder / "samples").iterdir()) for folder in (one, two))
    assert kept.name == again.name
    for ours, theirs in zip(open_images(kept).batches(8), open_images(again).batches(8), strict=True):
        assert torch.equal(ours, theirs)


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
