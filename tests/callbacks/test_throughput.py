from pathlib import Path

import lightning as L
import pytest

import callbacks.throughput
from callbacks.throughput import Throughput
from snapgen_pl.checkpoints import LAST
from tests import tiny_run
from tests.tiny_run import PIXELS, Stream, Tiny


class Clock:
    """Each batch takes one second, each validation a hundred."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Tick(L.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: object) -> None:
        self.clock.now += 1

    def on_validation_batch_start(self, *_: object) -> None:
        self.clock.now += 100


def measure(folder: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int = 1, peak: float | None = None) -> L.Trainer:
    clock = Clock()
    monkeypatch.setattr(callbacks.throughput, "time", clock)
    trainer = tiny_run.trainer_for(
        folder, 12, accumulate=accumulate, callbacks=[Tick(clock), Throughput(peak)], log_every_n_steps=4, logger=True
    )
    trainer.fit(Tiny(), Stream(6), Stream(6))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_speed_leaves_validation_out_and_does_not_depend_on_accumulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    metrics = measure(tmp_path, monkeypatch, accumulate).callback_metrics
    assert metrics["train/images_per_second"].item() == pytest.approx(6.0)
    assert metrics["train/images_seen"].item() == 12 * 6 * accumulate
    assert metrics["train/seconds"].item() == 12 * accumulate
    assert "train/mfu" not in metrics, "a CPU has no known peak"


def test_mfu_is_six_times_the_multiply_adds_over_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = measure(tmp_path, monkeypatch, peak=1e6)
    assert trainer.callback_metrics["train/mfu"].item() == pytest.approx(6 * (PIXELS * 32 * 2) * 6 / 1e6)


def test_seconds_go_on_in_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(tmp_path, monkeypatch)
    clock = Clock()
    monkeypatch.setattr(callbacks.throughput, "time", clock)
    trainer = tiny_run.trainer_for(
        tmp_path, 16, callbacks=[Tick(clock), Throughput()], log_every_n_steps=4, logger=True
    )
    trainer.fit(Tiny(), Stream(6), Stream(6), ckpt_path=tmp_path / LAST)
    assert trainer.callback_metrics["train/seconds"].item() == 16


def test_a_peak_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="peak_flops must be positive, got 0"):
        Throughput(peak_flops=0)
