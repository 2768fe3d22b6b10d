import pytest

from snapgen_pl.modules.turns import Turn, Turns


def taken(turns: Turns, count: int, postponed: bool = False) -> list[Turn]:
    """Whose the next steps are, as if they were taken."""
    found = []
    for _ in range(count):
        if postponed:
            turns.postpone()
        found.append(turns.turn)
        turns.steps[turns.turn] += 1
    return found


@pytest.mark.parametrize("discriminator_steps", [1, 2, 3])
def test_the_discriminator_comes_first_and_as_often_as_it_should(discriminator_steps: int) -> None:
    turns = Turns(discriminator_steps, accumulate=1, gradient_clip=None)
    rounds: list[Turn] = [*["discriminator"] * discriminator_steps, "generator"]  # type: ignore[list-item]
    assert taken(turns, 4 * len(rounds)) == rounds * 4


def test_what_is_postponed_is_not_made_up_for() -> None:
    turns = Turns(2, accumulate=1, gradient_clip=None)
    assert taken(turns, 5, postponed=True) == ["generator"] * 5
    rounds = ["discriminator", "discriminator", "generator"]
    assert taken(turns, 6) == rounds * 2
    assert taken(turns, 3, postponed=True) == ["generator"] * 3  # as where a resumed run postpones for longer
    assert taken(turns, 6) == rounds * 2


@pytest.mark.parametrize(("steps", "batches"), [(0, 1), (1, 0)])
def test_less_than_one_is_refused(steps: int, batches: int) -> None:
    with pytest.raises(ValueError, match=f"discriminator_steps is {steps}, accumulate {batches}"):
        Turns(steps, batches, None)
