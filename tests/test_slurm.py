"""The SLURM script as a cluster runs it, but for the cluster: srun runs its command, scancel passes a signal on,
scontrol writes down what it is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapgen_pl.checkpoints import newest, step_of
from tests import sample_run
from tests.test_experiments import CLASS_TEXTS, EMBEDDED, SMALL_RUN, SMALL_STAGES, flags

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "experiments" / "imagenet256" / "slurm.sh"


def start(folder: Path, images: Path, steps: int) -> "subprocess.Popen[str]":
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, body in {
        # As the real one: told to end, it kills.
        "srun": f"shift\n\"$@\" & child=$!\necho $child > {folder}/pid\ntrap 'kill -9 $child' TERM\nwait $child",
        "scancel": f'[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat {folder}/pid)',
        "scontrol": f'echo "$@" > {folder}/scontrol',
        "python": f'exec {sys.executable} "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    settings = (
        SMALL_RUN | CLASS_TEXTS | EMBEDDED | {"model.denoiser.stages": SMALL_STAGES, "model.denoiser.head_dim": "32"}
    )
    settings |= {"data.source.root": str(images), "trainer.max_steps": str(steps), "checkpoint.every_n_steps": "5"}
    settings |= {"trainer.val_check_interval": "1000", "trainer.accelerator": "cpu"}
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.Popen(["bash", SCRIPT, *flags(settings)], cwd=folder, env=environment, text=True)


def test_a_job_that_is_told_to_end_saves_and_queues_again_and_then_finishes(tmp_path: Path) -> None:
    images = sample_run.image_folder(tmp_path / "images")
    job, run = start(tmp_path, images, 100_000), tmp_path / "runs" / "imagenet256"
    while job.poll() is None and not (run / "last.ckpt").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    (tmp_path / "scontrol").unlink()
    reached = step_of(newest(run))
    assert start(tmp_path, images, reached + 3).wait() == 0
    assert step_of(newest(run)) == reached + 3
    assert not (tmp_path / "scontrol").exists()


def test_a_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    assert start(tmp_path, tmp_path / "nothing", 3).wait() == 1
    assert not (tmp_path / "scontrol").exists()
