import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snapgen_pl.distill.feature_loss import FeatureLoss, FeaturePair

PAIR = FeaturePair("up.1", "block.3", student_channels=2, teacher_channels=3)
OTHER = FeaturePair("middle", "block.3", student_channels=4, teacher_channels=3)


def set_projection(loss: FeatureLoss, weight: list[list[float]], bias: list[float], pair: int = 0) -> None:
    convolution = loss.projections[pair]
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(weight)[:, :, None, None])
        assert convolution.bias is not None
        convolution.bias.copy_(torch.tensor(bias))


def constant(*channels: float, batch: int = 1, side: int = 2) -> Tensor:
    return torch.tensor(channels)[None, :, None, None].expand(batch, -1, side, side).clone()


def test_a_case_by_hand() -> None:
    loss = FeatureLoss([PAIR])
    set_projection(loss, [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [0.0, 0.0, -1.0])
    # psi of (1, 2) is (1, 4, 2); (-1, 0, 1) normalised to a variance of 1 is (-1, 0, 1) * sqrt(3/2).
    root = 1.5**0.5
    expected = ((1 + root) ** 2 + 4**2 + (2 - root) ** 2) / 3
    assert loss([constant(1.0, 2.0)], [constant(-1.0, 0.0, 1.0)]).tolist() == pytest.approx([expected], rel=1e-5)


def test_pairs_are_summed_and_samples_kept_apart() -> None:
    torch.manual_seed(0)
    both = FeatureLoss([PAIR, OTHER])
    first, second = FeatureLoss([PAIR]), FeatureLoss([OTHER])
    first.projections[0], second.projections[0] = both.projections
    student = [torch.randn(3, 2, 4, 4), torch.randn(3, 4, 4, 4)]
    teacher = [torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)]
    whole = both(student, teacher)
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, first(student[:1], teacher[:1]) + second(student[1:], teacher[1:]))
    alone = both([feature[1:2] for feature in student], [feature[1:2] for feature in teacher])
    torch.testing.assert_close(whole[1:2], alone)
    assert (both.student_features, both.teacher_features) == (("up.1", "middle"), ("block.3", "block.3"))


def test_a_finer_student_is_averaged_over_areas() -> None:
    loss = FeatureLoss([PAIR])
    student = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    # The means of the 2 x 2 areas, and of 3 x 3 in which a bilinear sampling would see single places.
    pooled = student.view(1, 2, 2, 2, 2, 2).mean(dim=(3, 5))
    teacher = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(loss([student], [teacher]), loss([pooled], [teacher]))
    impulse = torch.zeros(1, 2, 6, 6)
    impulse[..., 0, 0] = 9.0
    averaged = torch.zeros(1, 2, 2, 2)
    averaged[..., 0, 0] = 1.0
    torch.testing.assert_close(loss([impulse], [teacher]), loss([averaged], [teacher]))


def test_a_coarser_student_is_interpolated_bilinearly() -> None:
    loss = FeatureLoss([PAIR])
    student = torch.tensor([0.0, 4.0]).expand(1, 2, 2, 2)  # 0 left, 4 right
    # Centres of the four columns lie at -1/4, 1/4, 3/4 and 5/4 of the two, and the ends hold.
    wide = torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(1, 2, 4, 4)
    teacher = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(loss([student], [teacher]), loss([wide], [teacher]))


def test_scale_and_shift_of_the_teachers_features_at_a_place_do_not_count() -> None:
    torch.manual_seed(0)
    loss = FeatureLoss([PAIR])
    student, teacher = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    moved = teacher * (torch.rand(2, 1, 4, 4) * 300 + 1) + torch.randn(2, 1, 4, 4) * 10
    torch.testing.assert_close(loss([student], [moved]), loss([student], [teacher]), rtol=1e-3, atol=1e-4)
    # One that counts: a scale for each channel.
    uneven = teacher * torch.tensor([1.0, 5.0, 25.0])[None, :, None, None]
    assert not torch.allclose(loss([student], [uneven]), loss([student], [teacher]), rtol=0.05)


def test_gradients_reach_the_student_and_the_projection_alone() -> None:
    loss = FeatureLoss([PAIR])
    student, teacher = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    loss([student], [teacher]).mean().backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in loss.parameters())
    assert teacher.grad is None


def test_a_projection_learns_the_teachers_features_from_the_students() -> None:
    torch.manual_seed(0)
    loss = FeatureLoss([PAIR])
    student = torch.randn(8, 2, 4, 4)
    teacher = torch.cat((student, -student.sum(1, keepdim=True)), dim=1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    start = loss([student], [teacher]).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss([student], [teacher]).mean().backward()
        optimizer.step()
    assert loss([student], [teacher]).mean().item() < 0.4 * start


def test_all_is_fp32_under_autocast_and_from_low_precision() -> None:
    torch.manual_seed(0)
    loss = FeatureLoss([PAIR])
    student, teacher = torch.randn(2, 2, 8, 8).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    guess = loss.projections[0](F.avg_pool2d(student.float(), 2))
    expected = guess - (teacher.float() - teacher.float().mean(1, True)) / teacher.float().std(1, False, True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss([student], [teacher])
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, expected.square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=0)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="FeatureLoss has no pairs"):
        FeatureLoss([])


def test_a_width_that_is_not_the_pairs_is_refused_with_the_remedy() -> None:
    loss = FeatureLoss([PAIR])
    with pytest.raises(ValueError, match=r"up\.1 -> block\.3: the student's .* 4 channels.* student_channels to 4"):
        loss([torch.zeros(1, 4, 2, 2)], [torch.zeros(1, 3, 2, 2)])
    with pytest.raises(ValueError, match=r"up\.1 -> block\.3: the teacher's .* 5 channels.* teacher_channels to 5"):
        loss([torch.zeros(1, 2, 2, 2)], [torch.zeros(1, 5, 2, 2)])
