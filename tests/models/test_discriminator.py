import pytest
import torch
from torch import Tensor

from snapgen_pl.models.discriminator import Discriminator, HeadInput


def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator([HeadInput("a", 6), HeadInput("b", 10)], summary_dim=5, width=16)


def inputs(batch: int = 3) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(batch, 6, 4, 4, generator=generator), torch.randn(batch, 10, 2, 3, generator=generator)]
    return features, torch.rand(batch, generator=generator), torch.randn(batch, 5, generator=generator)


def test_every_place_of_every_feature_has_a_logit() -> None:
    logits = discriminator()(*inputs())
    assert [tuple(logit.shape) for logit in logits] == [(3, 16), (3, 6)]
    assert torch.cat([logit.flatten() for logit in logits]).std() > 0


@pytest.mark.parametrize("which", [0, 1, 2])
def test_logits_depend_on_features_time_and_condition_of_their_own_sample(which: int) -> None:
    network, (features, t_B, summary_BD) = discriminator(), inputs()
    before = network(features, t_B, summary_BD)
    if which == 0:
        features[0][1] += torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(2))
    elif which == 1:
        t_B[1] = 0.9 - t_B[1]
    else:
        summary_BD[1] += 1
    after = network(features, t_B, summary_BD)
    changed = [(one - other).abs().amax(1) > 1e-4 for one, other in zip(before, after, strict=True)]
    assert changed[0].tolist() == [False, True, False]
    assert changed[1].tolist() == [False, which > 0, False]


def test_the_scale_of_a_feature_is_of_no_account() -> None:
    """A frozen transformer's widths differ by orders of magnitude from block to block."""
    network, (features, t_B, summary_BD) = discriminator(), inputs()
    large = [1000 * feature for feature in features]
    for one, other in zip(network(features, t_B, summary_BD), network(large, t_B, summary_BD), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_place_sees_its_neighbours_and_no_further() -> None:
    network = discriminator().double()
    network.heads[0].norm = torch.nn.Identity()  # type: ignore[union-attr]  # which sees all of them
    feature_BCHW = torch.randn(1, 6, 7, 7, dtype=torch.float64, requires_grad=True)
    other_BCHW = torch.randn(1, 10, 2, 2, dtype=torch.float64)
    embedding = torch.rand(1, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    logit_BN = network([feature_BCHW, other_BCHW], *embedding)[0]
    (gradient,) = torch.autograd.grad(logit_BN.view(7, 7)[3, 3], feature_BCHW)
    seen = (gradient[0].abs().sum(0) > 0).nonzero()
    assert seen.min(0).values.tolist() == [2, 2]
    assert seen.max(0).values.tolist() == [4, 4]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="inputs are empty"):
        Discriminator([], 5)
    with pytest.raises(ValueError, match="width is 12; it must be a multiple of 8"):
        Discriminator([HeadInput("a", 6)], 5, width=12)
