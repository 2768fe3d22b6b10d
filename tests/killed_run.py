"""A stage that is killed (SIGKILL) at random moments, each time started again, until it has come to its end."""

import multiprocessing
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning as L

from callbacks.timestep_scaling import TimestepAwareScaling
from snapgen_pl.checkpoints import LAST, PREVIOUS
from tests import decoder_run, distill_run, pretrain_run, tiny_run

# In this order they are killed in turn.
Moment = Literal["saving", "step", "validation", "start"]
# Seconds within which a kill comes after its moment began: about what the moment takes.
SECONDS: Mapping[Moment, float] = {"saving": 0.05, "step": 0.2, "validation": 0.1, "start": 1.0}
CADENCE = 3  # steps between two checkpoints, and between two validations
STEPS_A_SESSION = 6  # at most, but for what a process gets done before a kill reaches it

# Killed sessions are forked from a server that has imported all this, and never computes: a start takes no seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class Told(L.Callback):
    """Tells of each moment through a pipe, before it begins."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def tell(self, moment: Moment) -> None:
        self.pipe.send(moment)

    def on_train_batch_start(self, *_: object) -> None:
        self.tell("step")

    def on_save_checkpoint(self, *_: object) -> None:
        self.tell("saving")

    def on_validation_start(self, *_: object) -> None:
        self.tell("validation")


def pretraining(parts: Path, folder: Path, steps: int, **options: Any) -> None:
    pretrain_run.train(parts / "images", folder, steps, **options)


def distillation(parts: Path, folder: Path, steps: int, **options: Any) -> None:
    distill_run.train(distill_run.distill(parts / "teacher"), parts / "images", folder, steps, **scaled(options))


def step_distillation(parts: Path, folder: Path, steps: int, **options: Any) -> None:
    distill_run.train(distill_run.step_distill(parts / "teacher"), parts / "images", folder, steps, **scaled(options))


def decoder(parts: Path, folder: Path, steps: int, **options: Any) -> None:
    decoder_run.train(decoder_run.train_decoder(parts), parts / "images", folder, steps, **options)


def scaled(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"callbacks": [*options["callbacks"], TimestepAwareScaling()]}


STAGES: Mapping[str, Callable[..., None]] = {
    stage.__name__: stage for stage in (pretraining, distillation, step_distillation, decoder)
}


def prepare(stage: str, parts: Path) -> None:
    """Makes what a stage trains on."""
    if stage == "decoder":
        decoder_run.frozen_parts(parts)
        decoder_run.draw_photos(parts / "images")
        return
    images = pretrain_run.draw_images(parts / "images")
    if stage != "pretraining":
        distill_run.teacher_run(images, parts)


class Session(NamedTuple):
    """A process that trains, or goes on from the checkpoint that it finds.

    Attributes:
        process: it.
        moments: what it tells of them.
    """

    process: Any
    moments: Connection

    def next(self) -> Moment | None:
        """The moment that begins next; None at the end of the process."""
        try:
            moment: Moment = self.moments.recv()
        except EOFError:
            return None
        return moment

    def kill_in(self, moment: Moment, times: int, seconds: float) -> Moment:
        """Kills it so long after a moment began for the n-th time, and gives the one that it was in by then."""
        while times:
            last = self.next()
            assert last is not None, f"the run ended before it could be killed in {moment}"
            times -= last == moment
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL
        while (later := self.next()) is not None:
            last = later
        return last


def _session(stage: str, parts: Path, folder: Path, steps: int, pipe: Connection) -> None:
    told = Told(pipe)
    told.tell("start")
    resume = any((folder / name).exists() for name in (LAST, PREVIOUS))
    STAGES[stage](parts, folder, steps, resume=resume, every_n_steps=CADENCE, callbacks=[told])


def start(stage: str, parts: Path, folder: Path, steps: int) -> Session:
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_session, args=(stage, parts, folder, steps, sender))
    process.start()
    sender.close()
    return Session(process, receiver)


def finish(stage: str, parts: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Trains to the end, undisturbed, and returns the last checkpoint."""
    session = start(stage, parts, folder, steps)
    while session.next() is not None:
        pass
    session.process.join()
    assert session.process.exitcode == 0
    return tiny_run.load(folder / LAST)


def kill_often(stage: str, parts: Path, folder: Path, steps: int, kills: int) -> Counter[Moment]:
    """Trains through so many kills, and counts the moments in which they came."""
    plan, died = random.Random(f"{stage} {kills}"), Counter[Moment]()
    for number in range(kills):
        moment: Moment = get_args(Moment)[number % 4]
        most = {"saving": STEPS_A_SESSION // CADENCE, "step": STEPS_A_SESSION, "validation": 2, "start": 1}[moment]
        session = start(stage, parts, folder, steps)
        died[session.kill_in(moment, plan.randint(1, most), plan.uniform(0, SECONDS[moment]))] += 1
    return died
