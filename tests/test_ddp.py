"""Two processes over gloo do what one does: the same images give the same steps, and a signal ends both."""

from pathlib import Path

import pytest
import torch

from snapgen_pl.checkpoints import LAST, newest, step_of
from tests import bucket_run, tiny_run
from tests.test_resume import in_own_process

pytestmark = pytest.mark.slow


def worst_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    options = ("--steps", "20", "--dropout", "0")
    one = tiny_run.train(tmp_path / "one", 20, make=lambda: tiny_run.Tiny(dropout=0))
    ran = in_own_process(tmp_path / "two", *options, "--devices", "2")
    assert ran.returncode == 0, ran.stderr
    two = tiny_run.load(tmp_path / "two" / LAST)
    assert two["images_seen"] == one["images_seen"] == 120
    assert worst_difference(two["state_dict"], one["state_dict"]) < 1e-5
    assert worst_difference(two["ema"]["weights"], one["ema"]["weights"]) < 1e-5


def test_two_processes_with_buckets_train_as_one(tmp_path: Path) -> None:
    """In many steps both have images of other sizes: one process takes them in two batches."""
    images = bucket_run.draw_images(tmp_path / "images")
    one = bucket_run.train(images, tmp_path / "one", 12, accumulate=2)
    ran = in_own_process(images, tmp_path / "two", "--steps", "12", module="tests.bucket_run")
    assert ran.returncode == 0, ran.stderr
    two = tiny_run.load(tmp_path / "two" / LAST)
    assert two["images_seen"] == one["images_seen"] == 96
    assert worst_difference(two["state_dict"], one["state_dict"]) < 1e-5
    assert worst_difference(two["ema"]["weights"], one["ema"]["weights"]) < 1e-5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_saves_and_ends_both_and_resume_is_exact(tmp_path: Path, rank: int) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert in_own_process(straight, "--steps", "16", "--devices", "2").returncode == 0
    ended = in_own_process(
        parts, "--steps", "16", "--devices", "2", "--signal", "SIGTERM", "--at", "6", "--only-rank", str(rank)
    )
    assert ended.returncode == 0, ended.stderr
    # The processes vote every 10 steps.
    assert step_of(newest(parts)) == 10
    assert len(tiny_run.load(parts / LAST)["rng"]) == 2
    assert in_own_process(parts, "--steps", "16", "--devices", "2", "--resume").returncode == 0
    assert tiny_run.differing(tiny_run.load(parts / LAST), tiny_run.load(straight / LAST)) == []
