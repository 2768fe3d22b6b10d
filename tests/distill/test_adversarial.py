import math

import pytest
import torch
from torch import Tensor

from snapgen_pl.distill.adversarial import AdversarialLoss, gradient_penalty

# Two heads: 1 and 2 tokens of 2 samples.
LOGITS = [torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0, -1.0], [3.0, 0.0]])]


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_softplus_is_the_logarithm_of_the_printed_objective() -> None:
    loss = AdversarialLoss()
    of_real = [-(log_sigmoid(0) + (log_sigmoid(1) + log_sigmoid(-1)) / 2) / 2,
               -(log_sigmoid(2) + (log_sigmoid(3) + log_sigmoid(0)) / 2) / 2]  # fmt: skip
    of_fake = [-(log_sigmoid(0) + (log_sigmoid(-1) + log_sigmoid(1)) / 2) / 2,
               -(log_sigmoid(-2) + (log_sigmoid(-3) + log_sigmoid(0)) / 2) / 2]  # fmt: skip
    assert loss.real(LOGITS).tolist() == loss.fool(LOGITS).tolist() == pytest.approx(of_real)
    assert loss.fake(LOGITS).tolist() == pytest.approx(of_fake)


def test_the_hinge_stops_at_a_margin_of_one() -> None:
    loss = AdversarialLoss("hinge")
    assert loss.real(LOGITS).tolist() == pytest.approx([(1 + (0 + 2) / 2) / 2, (0 + (0 + 1) / 2) / 2])
    assert loss.fake(LOGITS).tolist() == pytest.approx([(1 + (2 + 0) / 2) / 2, (3 + (4 + 1) / 2) / 2])
    assert loss.fool(LOGITS).tolist() == pytest.approx([-(0 + 0) / 2, -(2 + 1.5) / 2])


def test_losses_are_fp32_and_do_not_overflow() -> None:
    logits = [torch.tensor([[60000.0], [-60000.0]], dtype=torch.float16)]
    for kind in ("softplus", "hinge"):
        loss = AdversarialLoss(kind)  # type: ignore[arg-type]
        for value in (loss.real(logits), loss.fake(logits), loss.fool(logits)):
            assert value.dtype == torch.float32
            assert value.isfinite().all()


def test_the_penalty_is_the_squared_gradient_at_each_place() -> None:
    """l = sum over channels of w f^2 / 2 at each place, so that dl / df = w f."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, generator=generator, requires_grad=True)
    feature_BCHW = torch.randn(2, 3, 4, 5, generator=generator).requires_grad_()

    def logits() -> list[Tensor]:
        return [(weight[:, None, None] * feature_BCHW.square() / 2).sum(1).flatten(1)] * 2

    penalty_B = gradient_penalty(logits(), [feature_BCHW, feature_BCHW])
    expected_B = (2 * weight[:, None, None] * feature_BCHW).square().sum(1).mean((1, 2))  # two heads on one feature
    torch.testing.assert_close(penalty_B, expected_B)
    (gradient,) = torch.autograd.grad(penalty_B.sum(), weight)
    torch.testing.assert_close(gradient, 8 * (weight[:, None, None] * feature_BCHW.square()).mean((2, 3)).sum(0))
