"""A process of a run is killed: the others end, say which one it was, and lose nothing that was saved."""

import re
from pathlib import Path

import pytest

from snapgen_pl.checkpoints import LAST, newest, step_of
from tests import tiny_run
from tests.test_resume import in_own_process

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_end_and_name_it_and_a_resume_loses_nothing(tmp_path: Path, rank: int) -> None:
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    assert in_own_process(straight, "--steps", "14", "--devices", "2").returncode == 0
    lost = in_own_process(
        parts, "--steps", "14", "--devices", "2", "--signal", "SIGKILL", "--at", "10", "--only-rank", rank
    )
    assert lost.returncode not in (0, None)
    # All of them have closed what they wrote to, or in_own_process would still wait.
    said = rf"the process of rank {rank} ended after step 1[01], and this one, of rank {1 - rank}, does with it"
    assert re.search(said, lost.stderr), lost.stderr
    assert step_of(newest(parts)) == 8
    assert in_own_process(parts, "--steps", "14", "--devices", "2", "--resume").returncode == 0
    assert tiny_run.differing(tiny_run.load(parts / LAST), tiny_run.load(straight / LAST)) == []
