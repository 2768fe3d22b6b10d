import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from snapgen_pl.checkpoints import LAST, PREVIOUS, is_whole, newest, read, step_of
from snapgen_pl.fsdp import FSDP2
from tests import tiny_run


def write(path: Path, step: int = 1) -> dict[str, Any]:
    checkpoint = {"global_step": step, "state_dict": {"w": torch.arange(5000.0) + step}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return checkpoint


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_saving_keeps_the_checkpoint_before_and_no_other_file(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / LAST, step)
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Has the system refuse to write further than so many bytes, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# In the tensors, and in the directory at the end.
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_write_that_the_disk_refuses_leaves_the_older_checkpoints_as_they_were(tmp_path: Path, share: float) -> None:
    with (
        largest_file(100),
        pytest.raises(OSError, match=r"last\.ckpt could not be written .*; nothing was saved before"),
    ):
        write(tmp_path / LAST, 1)
    write(tmp_path / LAST, 1)
    write(tmp_path / LAST, 2)
    size = int((tmp_path / LAST).stat().st_size * share)
    with (
        largest_file(size),
        pytest.raises(OSError, match=r"last\.ckpt could not be written \(File too large\); .*last\.ckpt stands: mend"),
    ):
        write(tmp_path / LAST, 3)
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (2, 1)
    assert not list(tmp_path.glob("*.part"))


def test_a_truncated_checkpoint_is_named_and_the_previous_one_offered(tmp_path: Path) -> None:
    write(tmp_path / LAST, 1)
    write(tmp_path / LAST, 2)
    truncate(tmp_path / LAST)
    assert not is_whole(tmp_path / LAST)
    for reader in (AtomicCheckpointIO().load_checkpoint, step_of, lambda path: newest(path.parent)):
        with pytest.raises(ValueError, match=r"last\.ckpt is truncated .*; resume with --ckpt_path .*previous\.ckpt"):
            reader(tmp_path / LAST)
    truncate(tmp_path / PREVIOUS)
    with pytest.raises(ValueError, match=r"no whole checkpoint lies beside it"):
        newest(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_checkpoint_cut_anywhere_is_not_whole(tmp_path: Path, kept: float) -> None:
    write(tmp_path / LAST)
    assert is_whole(tmp_path / LAST)
    os.truncate(tmp_path / LAST, int((tmp_path / LAST).stat().st_size * kept))
    assert not is_whole(tmp_path / LAST)


def test_a_kill_between_the_renames_leaves_the_previous_checkpoint_as_the_newest(tmp_path: Path) -> None:
    write(tmp_path / LAST, 1)
    (tmp_path / LAST).rename(tmp_path / PREVIOUS)
    assert newest(tmp_path) == tmp_path / PREVIOUS


def test_continuing_where_nothing_is_does_not_start_from_scratch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the run has saved none yet"):
        tiny_run.trainer_for(tmp_path, 2).fit(tiny_run.Tiny(), tiny_run.Stream(6), ckpt_path="last")


class Payload:
    """What a pickle may bring along: the call of any function, here one that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "trap": Payload(tmp_path / "run")}, tmp_path / LAST)
    for load in (AtomicCheckpointIO().load_checkpoint, step_of, read):
        with pytest.raises(
            ValueError, match=r"holds posix\.mkdir, and a checkpoint holds tensors and plain values alone"
        ):
            load(tmp_path / LAST)
    with pytest.raises(ValueError, match="leave weights_only out"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / LAST, weights_only=False)
    assert not (tmp_path / "run").exists()
    torch.load(tmp_path / LAST, weights_only=False)
    assert (tmp_path / "run").exists(), "the trap is one"


def test_a_flipped_bit_is_found_where_torch_finds_none(tmp_path: Path) -> None:
    write(tmp_path / LAST, 1)
    saved = write(tmp_path / LAST, 2)
    content = bytearray((tmp_path / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / LAST).write_bytes(content)
    assert is_whole(tmp_path / LAST)
    assert not torch.equal(torch.load(tmp_path / LAST)["state_dict"]["w"], saved["state_dict"]["w"])
    for reader in (AtomicCheckpointIO(), FSDP2()):
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: .*; resume with --ckpt_path .*previous\.ckpt"):
            reader.load_checkpoint(tmp_path / LAST)


class Noted(LastCheckpoint):
    """Notes the steps after which it saved."""

    def __init__(self, *cadence: Any) -> None:
        super().__init__(*cadence)
        self.saved: list[int] = []

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.saved.append(trainer.global_step)


def test_a_cadence_that_two_optimizers_jump_over_still_saves(tmp_path: Path) -> None:
    class TwoOptimizers(tiny_run.Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            step = super().training_step(batch, batch_idx)
            self.manual_backward(step["loss"])
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
            return step

    noted = Noted(5)
    trainer = tiny_run.trainer_for(tmp_path, 16, callbacks=[noted], ours=False)
    trainer.fit(TwoOptimizers(), tiny_run.Stream(6), tiny_run.Stream(6))
    assert noted.saved == [6, 10, 16]


@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [1, 2, 3]), (60.0, [3])])
def test_a_cadence_in_minutes_saves_by_the_clock_and_at_the_end(
    tmp_path: Path, minutes: float, steps: list[int]
) -> None:
    noted = Noted(None, minutes)
    tiny_run.trainer_for(tmp_path, 3, callbacks=[noted], ours=False).fit(
        tiny_run.Tiny(), tiny_run.Stream(6), tiny_run.Stream(6)
    )
    assert noted.saved == steps


def test_a_cadence_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1 and every_minutes above 0, got 0 and None"):
        LastCheckpoint(0)
    with pytest.raises(ValueError, match="got 5 and 0"):
        LastCheckpoint(5, 0)
    with pytest.raises(ValueError, match="both null; give one"):
        LastCheckpoint(None)
