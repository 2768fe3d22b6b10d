"""What breaks a run from outside, done for real: full and read-only disks, dead workers, files of another run."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from snapgen_pl.__main__ import main
from snapgen_pl.checkpoints import LAST, PREVIOUS, newest, step_of
from snapgen_pl.errors import is_told, reason
from snapgen_pl.runs import Run
from tests import pretrain_run, tiny_run
from tests.test_cli import copied, fails, snapshot, trained
from tests.tiny_cli import config

__all__ = ["trained"]  # a fixture
REPOSITORY = Path(__file__).parents[1]
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def on_its_own_disk(folder: Path, options: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with a file system at ``folder`` that nobody else sees; what it leaves there is kept beside it."""
    if shutil.which("unshare") is None or subprocess.run([*OWN_MOUNTS, "true"], check=False).returncode:
        pytest.skip("needs a system on which users may mount")
    folder.mkdir()
    script = 'mount -t tmpfs -o "$1" tmpfs "$0" && { shift; "$@"; code=$?; cp -r "$0" "$0.kept"; exit $code; }'
    return subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", script, str(folder), options, sys.executable, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class FillDisk(L.Callback):
    """Leaves no room beside the run for another checkpoint, from a step on."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 3:
            with Path(trainer.default_root_dir, "of-others").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 14))
                except OSError:
                    pass


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    file = config(tmp_path, runs=str(disk), checkpoint={"every_n_steps": 2})
    words = ["--trainer.max_steps=6", "--trainer.callbacks+=tests.test_faults.FillDisk"]
    ended = on_its_own_disk(disk, "size=4m", "-m", "snapgen_pl", "fit", "--config", file, *words)
    assert ended.returncode == 1, ended.stderr
    assert f"{disk}/tiny/{LAST} could not be written (No space left on device)" in ended.stderr
    assert f"{disk}/tiny/{LAST} stands: mend that, then resume from it" in ended.stderr
    assert "Traceback" not in ended.stderr
    kept = tmp_path / "disk.kept" / "tiny"
    assert step_of(kept / LAST) == 2
    assert not (kept / PREVIOUS).exists()
    assert not list(kept.glob("*.part"))


@pytest.mark.slow
def test_a_read_only_disk_is_told_before_any_work(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    file = config(tmp_path, runs=str(disk), data={"class_path": "tests.tiny_cli.Data", "init_args": {"folder": "no"}})
    ended = on_its_own_disk(disk, "ro", "-m", "snapgen_pl", "fit", "--config", file)
    assert ended.returncode == 1
    assert f"{disk}/tiny cannot hold a run: of {disk}, it may not be written; choose another --runs" in ended.stderr


def test_a_file_in_the_place_of_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ValueError, match=r"runs/tiny cannot hold a run: of .*runs, it is a file"):
        Run(tmp_path / "runs" / "tiny").start(None)


class KillWorkers(L.Callback):
    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 5:
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_and_a_resume_loses_nothing(tmp_path: Path) -> None:
    images = pretrain_run.draw_images(tmp_path / "images")
    straight = pretrain_run.train(images, tmp_path / "straight", 10)
    with pytest.raises(RuntimeError, match="DataLoader worker") as death:
        pretrain_run.train(images, tmp_path / "parts", 10, workers=2, callbacks=[KillWorkers()])
    assert is_told(death.value)
    assert "set fewer workers or a smaller batch" in reason(death.value)
    assert step_of(newest(tmp_path / "parts")) == 4
    resumed = pretrain_run.train(images, tmp_path / "parts", 10, resume=True, workers=2)
    assert tiny_run.differing(resumed, straight) == []


@pytest.mark.slow
def test_a_folder_is_one_runs_until_its_process_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hold = "import sys, time, pathlib; from snapgen_pl.runs import Run; claim = Run(pathlib.Path(sys.argv[1])).claim()"
    run = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-c", f"{hold}; print('held', flush=True); time.sleep(600)", str(run)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            error = fails(capsys, 1, "fit", "--config", config(tmp_path))
        finally:
            other.kill()
    assert f"another process is at work in {run}" in error
    assert [file.name for file in run.iterdir()] == [".lock"]
    assert main(["fit", "--config", config(tmp_path)]) == 0


def test_a_run_that_another_process_began_meanwhile_is_not_begun_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, claim = tmp_path / "runs" / "tiny", Run.claim

    def claim_late(self: Run) -> object:
        shutil.copytree(trained, run, dirs_exist_ok=True)
        return claim(self)

    monkeypatch.setattr(Run, "claim", claim_late)
    assert f"run {run} exists (step 3)" in fails(capsys, 1, "fit", "--config", config(tmp_path))
    assert (run / LAST).read_bytes() == (trained / LAST).read_bytes()


def test_another_runs_checkpoint_is_not_continued(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained, tmp_path)
    assert main(["fit", "--config", config(tmp_path, name="other"), "--model.seed=5"]) == 0
    shutil.copy(tmp_path / "runs" / "other" / LAST, run)
    before = snapshot(run)
    error = fails(capsys, 1, "fit", "--run", str(run), "--trainer.max_steps=5")
    assert f"{run / LAST} is not of the run that {run / 'config.yaml'} tells of" in error
    assert "  model.init_args.seed: 0 -> 5\n" in error
    assert snapshot(run) == before


def test_a_changed_configuration_is_not_continued(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(trained, tmp_path)
    changed = yaml.safe_load((run / "config.yaml").read_text())
    changed["model"]["init_args"]["learning_rate"] = 0.5
    (run / "config.yaml").write_text(yaml.safe_dump(changed))
    error = fails(capsys, 1, "fit", "--run", str(run), "--trainer.max_steps=5")
    assert "  model.init_args.learning_rate: 0.5 -> 1e-05\n" in error
    checkpoint = torch.load(run / LAST)
    del checkpoint["config"]
    torch.save(checkpoint, run / LAST)
    error = fails(capsys, 1, "fit", "--run", str(run), "--trainer.max_steps=5")
    assert f"{run / LAST} does not say how it was configured; put back the one that `fit` saved" in error


@pytest.mark.parametrize("content", ["{", '{"starts": []}', '{"starts": [{"data": 1}]}'])
def test_a_damaged_manifest_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    run = copied(trained, tmp_path)
    (run / "manifest.json").write_text(content)
    error = fails(capsys, 1, "fit", "--run", str(run), "--trainer.max_steps=5")
    assert str(run / "manifest.json") in error
    assert "put it back" in error
    assert step_of(run / LAST) == 3
