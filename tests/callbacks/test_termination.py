import os
import signal
from pathlib import Path

import lightning as L
import pytest

from callbacks.termination import Termination
from snapgen_pl.checkpoints import LAST, step_of
from tests import tiny_run
from tests.tiny_run import KillAt, Stream, Tiny


class SignalInValidation(L.Callback):
    def __init__(self) -> None:
        self.validations = 0
        self.finished = 0

    def on_validation_batch_start(self, *_: object) -> None:
        self.validations += 1
        if self.validations == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_end(self, *_: object) -> None:
        self.finished += 1


def test_a_signal_during_validation_lets_it_finish_saves_and_begins_no_other(tmp_path: Path) -> None:
    watcher = SignalInValidation()
    trainer = tiny_run.trainer_for(tmp_path, 14, callbacks=[watcher])
    trainer.fit(Tiny(), Stream(6), Stream(6))
    assert (watcher.validations, watcher.finished) == (1, 1)
    assert step_of(tmp_path / LAST) == trainer.global_step == 4
    assert trainer.limit_val_batches == 1, "the setting is put back"


def test_a_signal_during_validation_resumes_to_the_same_weights(tmp_path: Path) -> None:
    straight = tiny_run.train(tmp_path / "straight", 9)
    tiny_run.train(tmp_path / "parts", 9, callbacks=[SignalInValidation()])
    resumed = tiny_run.train(tmp_path / "parts", 9, resume=True)
    assert tiny_run.differing(resumed, straight) == []


def test_handlers_are_put_back_after_the_run_and_after_a_failure(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    tiny_run.train(tmp_path, 2)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(FloatingPointError):
        tiny_run.train(tmp_path, 8, make=lambda: Tiny(nan_at=14))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    class Impatient(KillAt):
        def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            super().on_after_backward(trainer, pl_module)
            if self.step == -1:
                os.kill(os.getpid(), self.number)

    with pytest.raises(SystemExit):
        tiny_run.train(tmp_path, 8, callbacks=[Impatient(2, signal.SIGINT)])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    assert not (tmp_path / LAST).exists()


def test_what_was_received_does_not_outlive_the_run(tmp_path: Path) -> None:
    termination = Termination()
    for steps, number in ((6, signal.SIGTERM), (8, signal.SIGUSR2)):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        trainer = tiny_run.trainer_for(tmp_path, steps, callbacks=[KillAt(2, number), termination], ours=False)
        trainer.fit(Tiny(), Stream(6), Stream(6))
    assert trainer.global_step == 8
