from pathlib import Path

from jsonargparse import ArgumentParser

from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.teachers.sd3 import SD3Teacher
from snapgen_pl.teachers.teacher import Teacher
from tests.teachers.tiny import pipeline


def test_teachers_are_interchangeable_on_the_command_line(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Teacher, "teacher", required=True)
    words = [
        "--teacher=snapgen_pl.teachers.sd3.SD3Teacher",
        f"--teacher.path={pipeline(tmp_path)}",
        "--teacher.guidance.scale=3",
        "--teacher.placement=sharded",
        "--teacher.conditioner=tests.teachers.tiny.PooledTokens",
        "--teacher.conditioner.num_classes=3",
        "--teacher.conditioner.context_dim=12",
    ]
    made = parser.instantiate(parser.parse_args(words)).teacher
    assert isinstance(made, SD3Teacher)
    assert (made.guidance, made.placement, made.dtype) == (Guidance(3.0), "sharded", "bfloat16")
