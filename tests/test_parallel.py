"""Every stage trains on two and four processes as on one: DDP and FSDP2, accumulated batches, resumed on any number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from snapgen_pl.checkpoints import LAST
from snapgen_pl.teachers.placement import Placement
from tests import tiny_run
from tests.parallel_run import BATCH, Job, StageName, Strategy, draw, train_all
from tests.test_resume import in_own_process

DECODER = Path(__file__).parents[1] / "experiments" / "decoder" / "tiny.yaml"

STEPS = 6
TOLERANCE = 1e-5
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp2")
slow = pytest.mark.slow


def stages(*fast: StageName) -> list[Any]:
    """All stages, of which some are tested always."""
    return [stage if stage in fast else pytest.param(stage, marks=slow) for stage in get_args(StageName)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages read; to be read only."""
    return draw(tmp_path_factory.mktemp("made"))


def moments(saved: dict[str, Any]) -> list[Tensor]:
    """Of each optimizer, both of Adam's moments, flat; the first relates to the gradient's size, the second to its
    square's."""
    return [
        torch.cat([torch.zeros(1), *(state[name].flatten() for state in states["state"].values())])
        for states in saved["optimizer_states"]
        for name in ("exp_avg", "exp_avg_sq")
    ]


def counts(saved: dict[str, Any]) -> dict[str, Any]:
    """All that is counted: steps, images, turns, each weight's steps, the place in the data."""
    flat = tiny_run.flat({key: saved[key] for key in ("images_seen", "global_step", "steps", "alone") if key in saved})
    steps = [[float(state["step"]) for state in states["state"].values()] for states in saved["optimizer_states"]]
    positions = {path: value for path, value in tiny_run.flat(saved["loops"]).items() if path.endswith("/position")}
    assert positions
    return {**flat, "optimizers": steps, "position": positions, "averaged": saved["ema"]["images"]}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def assert_same(job: Job, expected: Job) -> None:
    """The runs ended in the same weights, averages, moments and counts."""
    found, wanted = (tiny_run.load(each.folder / LAST) for each in (job, expected))
    assert counts(found) == counts(wanted)
    weights = furthest(found["state_dict"], wanted["state_dict"])
    average = furthest(found["ema"]["weights"], wanted["ema"]["weights"])
    relative = [
        float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(moments(found), moments(wanted), strict=True)
    ]
    print(f"{job.stage} {job.folder.name}: weights {weights:.1e}, average {average:.1e}, moments {max(relative):.1e}")
    assert max(weights, average) <= TOLERANCE
    assert max(relative) <= 1e-3
    assert_logged_alike(found, wanted)
    # A step that one of them had left out would show: the average is where the weights were a few steps ago.
    lag = furthest(wanted["ema"]["weights"], {name: wanted["state_dict"][name] for name in wanted["ema"]["weights"]})
    assert lag > 30 * TOLERANCE


def assert_logged_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Each step was logged as the mean over all its batches, whoever had them."""
    logged, expected = (saved["callbacks"]["Logged"]["values"] for saved in (found, wanted))
    assert len(logged) == len(expected) > 0
    for here, there in zip(logged, expected, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5)


def alone(made: Path, stage: StageName, folder: Path, steps: int = STEPS, **options: Any) -> Job:
    job = Job(stage, folder / "one", steps, **options)
    train_all(made, [job], 1)
    return job


@pytest.mark.parametrize("stage", stages("pretrain", "decoder"))
def test_two_processes_train_as_one(made: Path, tmp_path: Path, stage: StageName) -> None:
    one = alone(made, stage, tmp_path)
    several(made, one, tmp_path, 2)


@pytest.mark.parametrize("stage", stages("pretrain"))
def test_four_processes_train_as_one(made: Path, tmp_path: Path, stage: StageName) -> None:
    one = alone(made, stage, tmp_path)
    several(made, one, tmp_path, 4)


def several(made: Path, one: Job, folder: Path, processes: int) -> None:
    jobs = [Job(one.stage, folder / f"{strategy}-{processes}", STEPS, strategy) for strategy in STRATEGIES]
    train_all(made, jobs, processes)
    for job in jobs:
        assert_same(job, one)


@pytest.mark.parametrize("stage", stages("step_distill"))
def test_accumulated_batches_are_one_larger_batch(made: Path, tmp_path: Path, stage: StageName) -> None:
    """Also where a validation comes between them. A decoder's adaptive weight is of one batch: it trains alone here."""
    one = alone(made, stage, tmp_path, alone=STEPS * BATCH)
    parts = Job(stage, tmp_path / "parts", STEPS, accumulate=2, alone=STEPS * BATCH)
    train_all(made, [parts], 1)
    assert_same(parts, one)


JOURNEY: Sequence[tuple[int, Strategy]] = [(2, "ddp"), (1, "ddp"), (2, "fsdp2"), (4, "ddp"), (4, "fsdp2"), (1, "ddp")]


@pytest.mark.parametrize("stage", stages("decoder"))
def test_a_checkpoint_serves_any_number_of_processes_and_either_strategy(
    made: Path, tmp_path: Path, stage: StageName
) -> None:
    one = alone(made, stage, tmp_path, steps=len(JOURNEY))
    for step, (processes, strategy) in enumerate(JOURNEY, start=1):
        job = Job(stage, tmp_path / "journey", step, strategy, resume=step > 1)
        train_all(made, [job], processes)
    assert_same(job, one)


@slow
@pytest.mark.parametrize("stage", ["distill", "step_distill"])
def test_where_the_teachers_weights_lie_changes_nothing(made: Path, tmp_path: Path, stage: StageName) -> None:
    one = alone(made, stage, tmp_path)
    jobs = [
        Job(stage, tmp_path / f"{placement}-{strategy}", STEPS, strategy, placement=placement)
        for placement in get_args(Placement)[1:]
        for strategy in STRATEGIES
    ]
    train_all(made, jobs, 2)
    for job in jobs:
        assert_same(job, one)


@slow
@pytest.mark.parametrize("strategy", ["auto", "ddp", "snapgen_pl.fsdp.FSDP2"])
def test_one_flag_is_enough_for_two_networks_that_take_turns(made: Path, tmp_path: Path, strategy: str) -> None:
    small = {
        "name": "small",
        "runs": str(tmp_path),
        "data.source": "snapgen_pl.data.image_folder.ImageFolder",
        "data.source.root": str(made / "photographs"),
        "data.source.validation_fraction": "0.25",
        "data.image_size": "32",
        "data.batch_size": "4",
        "data.workers": "0",
        "model.autoencoder.path": str(made / "parts"),
        "model.decoder.in_channels": "4",
        "model.decoder.stages": str([{"channels": 32, "blocks": 1}] * 3),
        "model.discriminator.width": "32",
        "model.discriminator.layers": "2",
        "model.reconstruction.lpips_weight": "0",
        "model.adversarial_from": "4",
        "trainer.max_steps": "3",
        "trainer.val_check_interval": "3",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.devices": "2",
        "trainer.strategy": strategy,
    }
    words = [word for name, value in small.items() for word in (f"--{name}", value)]
    done = in_own_process("fit", "--config", DECODER, *words, module="snapgen_pl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny_run.load(tmp_path / "small" / LAST)["steps"] == {"generator": 2, "discriminator": 1}
