"""Every stage, killed at any moment and as often as it likes, ends where the run does that nobody disturbed."""

from pathlib import Path

import pytest

from tests import killed_run, tiny_run

STAGES = [pytest.param(stage, 20, marks=pytest.mark.slow) for stage in killed_run.STAGES]


@pytest.mark.parametrize(("stage", "kills"), [("pretraining", 2), *STAGES])
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(
    tmp_path: Path, stage: str, kills: int
) -> None:
    parts, steps = tmp_path / "parts", killed_run.STEPS_A_SESSION * (kills + 1)
    killed_run.prepare(stage, parts)
    straight = killed_run.finish(stage, parts, tmp_path / "straight", steps)
    died = killed_run.kill_often(stage, parts, tmp_path / "killed", steps, kills)
    print(f"{stage}: {kills} kills, {dict(died)}, {steps} steps")
    assert straight["global_step"] == steps
    # Weights, their average, optimizers, generators, positions and counters: all that a checkpoint holds.
    assert tiny_run.differing(killed_run.finish(stage, parts, tmp_path / "killed", steps), straight) == []
