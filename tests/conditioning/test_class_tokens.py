import pytest
import torch

from snapgen_pl.conditioning.class_tokens import ClassTokens


def test_a_class_reads_as_its_own_tokens() -> None:
    conditioner = ClassTokens(num_classes=5, tokens=3, context_dim=8)
    tokens = conditioner(torch.tensor([1, 4, 1])).tokens_BSD
    assert tokens.shape == (3, 3, 8)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0, 0], tokens[0, 1])


def test_the_unconditional_is_the_null_class_alone() -> None:
    conditioner = ClassTokens(num_classes=5, tokens=2, context_dim=8)
    labels = torch.tensor([0, 3])
    expected = conditioner.table.weight[5].view(1, 2, 8).expand(2, -1, -1)
    assert torch.equal(conditioner.unconditional(labels).tokens_BSD, expected)


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    conditioner = ClassTokens(num_classes=5, context_dim=8, dropout=0.2)
    dropped = conditioner.drop(torch.full((10_000,), 3), 0, torch.arange(10_000))
    rate = (dropped == conditioner.null_label).float().mean().item()
    assert rate == pytest.approx(0.2, abs=4 * (0.16 / 10_000) ** 0.5)
    assert set(dropped.tolist()) == {3, 5}
    assert torch.equal(conditioner.asks_nothing(dropped), dropped == conditioner.null_label)


def test_without_dropout_no_label_is_lost() -> None:
    conditioner = ClassTokens(num_classes=5, context_dim=8, dropout=0.0)
    assert conditioner.drop(torch.arange(5), 0, torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"num_classes": 0}, "num_classes is 0"), ({"dropout": 1.0}, "dropout is 1.0")]
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassTokens(**arguments)  # type: ignore[arg-type]
