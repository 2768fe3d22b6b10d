"""Interrupted runs end where uninterrupted ones do, to the bit and in everything a checkpoint holds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from snapgen_pl.checkpoints import LAST, PREVIOUS, is_whole, newest, step_of
from tests import bucket_run, pretrain_run, tiny_run

STEPS = 14
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint of the uninterrupted run that every test is held against."""
    return tiny_run.train(tmp_path_factory.mktemp("straight"), STEPS)


def in_own_process(*words: object, module: str = "tests.tiny_run") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        # A group of its own, for tests that signal one.
        start_new_session=True,
        cwd=REPOSITORY,
        # Sums over another number of threads differ in their last bits on some processors.
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_stopping_and_resuming_changes_nothing_for_the_real_first_stage(tmp_path: Path, accumulate: int) -> None:
    images = pretrain_run.draw_images(tmp_path / "images")
    straight = pretrain_run.train(images, tmp_path / "straight", 10, accumulate=accumulate)
    pretrain_run.train(images, tmp_path / "parts", 5, accumulate=accumulate)
    resumed = pretrain_run.train(images, tmp_path / "parts", 10, resume=True, accumulate=accumulate)
    assert straight["images_seen"] == 10 * pretrain_run.BATCH
    assert tiny_run.differing(resumed, straight) == []


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_run_that_goes_on_with_another_accumulation_takes_the_same_steps(
    tmp_path: Path, before: int, after: int
) -> None:
    images = pretrain_run.draw_images(tmp_path / "images")
    straight = pretrain_run.train(images, tmp_path / "straight", 6, accumulate=after)
    pretrain_run.train(images, tmp_path / "parts", 3, accumulate=before)
    resumed = pretrain_run.train(images, tmp_path / "parts", 6, resume=True, accumulate=after)
    assert resumed["images_seen"] == straight["images_seen"] == 6 * pretrain_run.BATCH
    loops = [saved["loops"]["fit_loop"] for saved in (resumed, straight)]
    assert loops[0]["state_dict"] == loops[1]["state_dict"]
    assert loops[0]["epoch_loop.batch_progress"] == loops[1]["epoch_loop.batch_progress"]
    weights = [saved["state_dict"] for saved in (resumed, straight)]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-6


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_stopping_and_resuming_changes_nothing_with_buckets(tmp_path: Path, workers: int) -> None:
    images = bucket_run.draw_images(tmp_path / "images")
    straight = bucket_run.train(images, tmp_path / "straight", 10, accumulate=2)
    bucket_run.train(images, tmp_path / "parts", 5, accumulate=2, workers=workers)
    resumed = bucket_run.train(images, tmp_path / "parts", 10, resume=True, accumulate=2, workers=workers)
    assert straight["images_seen"] == 10 * pretrain_run.BATCH
    assert tiny_run.differing(resumed, straight) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_whole_group_leaves_the_loading_workers_to_finish_the_step(tmp_path: Path, name: str) -> None:
    images = pretrain_run.draw_images(tmp_path / "images")
    straight = pretrain_run.train(images, tmp_path / "straight", 10, accumulate=2)
    ended = in_own_process(images, tmp_path / "parts", "--signal", name, module="tests.pretrain_run")
    assert ended.returncode == 0, ended.stderr
    assert step_of(newest(tmp_path / "parts")) == 4
    resumed = pretrain_run.train(images, tmp_path / "parts", 10, resume=True, accumulate=2)
    assert tiny_run.differing(resumed, straight) == []


@pytest.mark.parametrize("stop", [5, 6, 8])
def test_stopping_and_resuming_changes_nothing(tmp_path: Path, straight: dict[str, Any], stop: int) -> None:
    tiny_run.train(tmp_path, stop)
    assert tiny_run.differing(tiny_run.train(tmp_path, STEPS, resume=True), straight) == []


@pytest.mark.parametrize("stop", [4, 5])
def test_stopping_and_resuming_changes_nothing_under_accumulation(tmp_path: Path, stop: int) -> None:
    straight = tiny_run.train(tmp_path / "straight", 10, accumulate=2)
    tiny_run.train(tmp_path / "parts", stop, accumulate=2)
    resumed = tiny_run.train(tmp_path / "parts", 10, resume=True, accumulate=2)
    assert straight["images_seen"] == 10 * 2 * 6
    assert tiny_run.differing(resumed, straight) == []


def test_a_resumed_run_may_save_at_another_cadence(tmp_path: Path, straight: dict[str, Any]) -> None:
    tiny_run.train(tmp_path, 8, every_n_steps=4)
    resumed = tiny_run.train(tmp_path, STEPS, resume=True, every_n_steps=3)
    assert tiny_run.differing(resumed, straight) == []
    assert sorted(path.name for path in tmp_path.glob("*.ckpt*")) == [LAST, PREVIOUS]


def test_the_comparison_sees_a_generator_that_was_not_restored(tmp_path: Path, straight: dict[str, Any]) -> None:
    tiny_run.train(tmp_path, 7)
    torch.save(tiny_run.load(tmp_path / LAST) | {"rng": []}, tmp_path / LAST)
    differing = tiny_run.differing(tiny_run.train(tmp_path, STEPS, resume=True), straight)
    assert any(path.startswith("/state_dict") for path in differing)


def test_the_steps_after_the_last_cadence_are_saved(straight: dict[str, Any]) -> None:
    assert (straight["global_step"], straight["images_seen"]) == (STEPS, STEPS * 6)


@pytest.mark.parametrize("moment", ["writing", pytest.param("renaming", marks=pytest.mark.slow)])
def test_a_kill_while_saving_leaves_a_whole_checkpoint_to_resume_from(
    tmp_path: Path, straight: dict[str, Any], moment: str
) -> None:
    killed = in_own_process(tmp_path, "--die-while", moment)
    assert killed.returncode == -9
    assert (tmp_path / (LAST + ".part")).exists()
    assert is_whole(newest(tmp_path))
    assert step_of(newest(tmp_path)) == 4
    assert tiny_run.differing(tiny_run.train(tmp_path, STEPS, resume=True), straight) == []


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_step_loses_only_the_steps_since_the_last_checkpoint(
    tmp_path: Path, straight: dict[str, Any]
) -> None:
    killed = in_own_process(tmp_path, "--signal", "SIGKILL", "--at", "10")
    assert killed.returncode == -9
    assert step_of(newest(tmp_path)) == 8
    assert tiny_run.differing(tiny_run.train(tmp_path, STEPS, resume=True), straight) == []


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_after_its_step_with_everything_saved(
    tmp_path: Path, straight: dict[str, Any], name: str
) -> None:
    ended = in_own_process(tmp_path, "--signal", name, "--at", "9")
    assert ended.returncode == 0, ended.stderr
    assert f"Stopped by {name} after step 10." in ended.stdout
    assert f"--ckpt_path {tmp_path / LAST}" in ended.stdout
    assert step_of(newest(tmp_path)) == 10
    assert tiny_run.differing(tiny_run.train(tmp_path, STEPS, resume=True), straight) == []


@pytest.mark.slow
def test_a_signal_inside_an_accumulation_waits_for_the_optimizer(tmp_path: Path) -> None:
    straight = tiny_run.train(tmp_path / "straight", 10, accumulate=2)
    ended = in_own_process(tmp_path / "parts", "--accumulate", "2", "--signal", "SIGTERM", "--at", "5", "--steps", "10")
    assert ended.returncode == 0, ended.stderr
    resumed = tiny_run.train(tmp_path / "parts", 10, resume=True, accumulate=2)
    assert tiny_run.differing(resumed, straight) == []
