import tempfile
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from snapgen_pl.conditioning.condition import rolled
from snapgen_pl.flow.guidance import Guidance
from snapgen_pl.teachers.sd3 import SD3Teacher
from snapgen_pl.teachers.teacher import Teacher
from tests.teachers.tiny import CLASSES, NAMES, conditioner, pipeline


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


def test_what_is_observed_are_the_features_on_the_way_to_the_conditional_velocity() -> None:
    teacher = loaded(Guidance(3.0))
    x_BCHW, t_B, label_B, nothing_B = asked()
    question = teacher.ask(label_B, nothing_B)
    told = teacher(x_BCHW, t_B, question, NAMES)
    one, other = teacher.observe([x_BCHW, x_BCHW + 1], t_B, question, NAMES)
    for seen, feature in zip(one.features, told.features, strict=True):
        torch.testing.assert_close(seen, feature, rtol=1e-4, atol=1e-5)
    assert (one.features[0] - other.features[0]).abs().max() > 1e-2
    assert one.summary_BD.shape == (len(t_B), teacher.summary_dim)
    assert [row.any().item() for row in one.summary_BD] == [True, False, True]  # nothing was asked for in the second


def test_blocks_beyond_the_last_feature_are_not_computed() -> None:
    teacher, ran = loaded(Guidance()), list[int]()
    x_BCHW, t_B, label_B, nothing_B = asked()
    question = teacher.ask(label_B, nothing_B)
    for index, block in enumerate(teacher._denoiser.units()):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    told = teacher(x_BCHW, t_B, question, ("block.1", "block.0"))
    (seen,) = teacher.observe([x_BCHW], t_B, question, ("block.1", "block.0"))
    assert ran == [0, 1, 2, 0, 1]
    assert all(torch.equal(one, other) for one, other in zip(seen.features, told.features, strict=True))


def test_gradients_of_what_is_observed_reach_the_latents_alone() -> None:
    teacher = loaded(Guidance())
    x_BCHW, t_B, label_B, nothing_B = asked()
    x_BCHW.requires_grad_()
    (seen,) = teacher.observe([x_BCHW], t_B, teacher.ask(label_B, nothing_B), NAMES)
    (gradient,) = torch.autograd.grad(seen.features[0][0].square().sum(), x_BCHW)
    assert [sample.any().item() for sample in gradient] == [True, False, False]
    assert all(weight.grad is None for weight in teacher._denoiser.parameters())


def test_a_rolled_question_is_that_of_rolled_conditions() -> None:
    teacher = loaded(Guidance())
    x_BCHW, t_B, label_B, nothing_B = asked()
    question = teacher.ask(label_B, nothing_B)
    asked_anew = teacher.ask(rolled(label_B), nothing_B)
    (own,), (one,), (other,) = (
        teacher.observe([x_BCHW], t_B, each, NAMES) for each in (question, question.rolled(), asked_anew)
    )
    assert torch.equal(one.summary_BD, other.summary_BD)
    assert all(torch.equal(seen, anew) for seen, anew in zip(one.features, other.features, strict=True))
    changed_B = (one.features[0] != own.features[0]).flatten(1).any(dim=1)
    assert changed_B.tolist() == [True, False, True]


def test_nothing_is_asked_without_weights(tmp_path: Path) -> None:
    teacher = SD3Teacher(conditioner(), str(pipeline(tmp_path)))
    with pytest.raises(ValueError, match="has no weights yet"):
        teacher.ask(torch.zeros(1).long(), torch.zeros(1).bool())


def loaded(guidance: Guidance) -> SD3Teacher:
    with tempfile.TemporaryDirectory() as folder:
        made = SD3Teacher(conditioner(), str(pipeline(Path(folder))), guidance=guidance, dtype="float32")
        made.ready(Path(folder), CLASSES)
    return made


def asked() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x_BCHW = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return x_BCHW, torch.tensor([0.2, 0.6, 1.0]), torch.tensor([0, 1, 2]), torch.tensor([False, True, False])
