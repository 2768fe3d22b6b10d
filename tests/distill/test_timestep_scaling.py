import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, Role
from snapgen_pl.distill.timestep_scaling import TimestepAwareScaling, check_roles, logit_normal_lambda

TIMES = torch.tensor([0.1, 0.5, 0.7])


def terms(t_B: Tensor, *losses: tuple[Role, Tensor]) -> LossTerms:
    return LossTerms(t_B, tuple(LossTerm(role, role, value_B) for role, value_B in losses))


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


@pytest.mark.parametrize(("t", "value"), [(0.5, 1), (0.3, 0.83), (0.2, 0.60), (0.1, 0.25), (0.05, 0.07)])
def test_lambda_has_the_tabled_values_and_is_symmetric(t: float, value: float) -> None:
    both = logit_normal_lambda(torch.tensor([t, 1 - t]))
    assert both.tolist() == pytest.approx([value] * 2, abs=0.005)
    assert both[0].item() == pytest.approx(both[1].item(), rel=1e-5)


@given(st.floats(0, 1, width=32))
def test_lambda_is_the_formula_wherever_that_can_be_computed(t: float) -> None:
    value = logit_normal_lambda(torch.tensor(t)).item()
    assert 0 <= value <= 1 + 1e-6
    if 1e-6 < t < 1 - 1e-6:
        formula = math.exp(-(math.log(t / (1 - t)) ** 2) / 2) / (4 * t * (1 - t))
        assert value == pytest.approx(formula, rel=1e-3, abs=1e-6)


def test_lambda_is_zero_at_the_ends_in_fp32_and_any_shape() -> None:
    value = logit_normal_lambda(torch.tensor([[0.0, 0.5], [1.0, 0.5]], dtype=torch.bfloat16))
    assert value.dtype == torch.float32
    assert value[:, 0].tolist() == [0, 0]
    assert value[:, 1].tolist() == pytest.approx([1, 1])


samples = st.tuples(st.floats(0, 1), st.floats(1e-3, 10), st.floats(1e-3, 10))


@given(st.lists(samples, min_size=1, max_size=8), st.floats(0, 1))
def test_the_value_is_the_tasks_unless_ratios_are_clamped(drawn: list[tuple[float, float, float]], most: float) -> None:
    t_B, task_B, kd_B = (torch.tensor(values) for values in zip(*drawn, strict=True))
    loss, logs = TimestepAwareScaling(most, ratio_max=2e4)(terms(t_B, ("task", task_B), ("kd", kd_B)))
    assert loss.item() == pytest.approx(task_B.mean().item(), rel=1e-6)
    assert logs["clamped_kd"].item() == 0


@pytest.mark.parametrize("lambda_max", [1.0, 0.5])
def test_the_gradient_is_the_papers_with_none_through_the_ratio(lambda_max: float) -> None:
    task, kd, feature = leaf(1, 2, 3), leaf(0.5, 4, 2), leaf(6, 1, 1)
    loss, logs = TimestepAwareScaling(lambda_max)(terms(TIMES, ("task", task), ("kd", kd), ("feature", feature)))
    loss.backward()
    weight = logit_normal_lambda(TIMES).clamp(max=lambda_max)
    # dS = lambda dL_task + (1 - lambda) L_task / L dL, for kd and for features, averaged over three samples.
    torch.testing.assert_close(task.grad, 2 * weight / 3)
    torch.testing.assert_close(kd.grad, (1 - weight) * torch.tensor([2, 0.5, 1.5]) / 3)
    torch.testing.assert_close(feature.grad, (1 - weight) * torch.tensor([1 / 6, 2, 3]) / 3)
    assert loss.item() == pytest.approx(2 * 2)
    assert logs["lambda"].item() == pytest.approx(weight.mean().item())
    assert logs["ratio_kd"].item() == pytest.approx((2 + 0.5 + 1.5) / 3)
    assert [logs[name].item() for name in ("task", "kd", "feature")] == pytest.approx([2, 6.5 / 3, 8 / 3])
    assert not any(value.requires_grad for value in logs.values())


def test_a_ratio_is_clamped_and_the_share_of_such_samples_logged() -> None:
    task, kd = leaf(1, 1, 1), leaf(0.001, 1, 0.5)
    loss, logs = TimestepAwareScaling(ratio_max=0.7)(terms(TIMES, ("task", task), ("kd", kd)))
    loss.backward()
    weight = logit_normal_lambda(TIMES)
    torch.testing.assert_close(kd.grad, (1 - weight) * 0.7 / 3)
    assert logs["clamped_kd"].item() == 1
    value = (weight + (1 - weight) * 0.7 * torch.tensor([0.001, 1, 0.5])).mean().item()
    assert loss.item() == pytest.approx(value)
    _, logs = TimestepAwareScaling(ratio_max=1.5)(terms(TIMES, ("task", task), ("kd", kd)))
    assert logs["clamped_kd"].item() == pytest.approx(2 / 3)
    assert logs["ratio_kd"].item() == pytest.approx((1.5 + 1 + 1.5) / 3)


@pytest.mark.parametrize("ratio", ["sample", "bin"])
def test_a_student_that_is_the_teacher_divides_by_nothing(ratio: str) -> None:
    task, kd = leaf(1, 0, 2), leaf(0, 0, 0)
    scaling = TimestepAwareScaling(ratio_max=50, ratio=ratio)  # type: ignore[arg-type]
    loss, logs = scaling(terms(TIMES, ("task", task), ("kd", kd)))
    loss.backward()
    weight = logit_normal_lambda(TIMES)
    torch.testing.assert_close(kd.grad, (1 - weight) * 50 / 3)
    assert loss.item() == pytest.approx((weight * task).mean().item())
    assert logs["clamped_kd"].item() == 1


@pytest.mark.parametrize("ratio", ["sample", "bin"])
def test_all_is_fp32_under_autocast_and_from_low_precision(ratio: str) -> None:
    t_B = torch.rand(64)
    low: list[tuple[Role, Tensor]] = [(role, (torch.rand(64) + 0.1).bfloat16()) for role in ("task", "kd", "kd")]
    plain = TimestepAwareScaling(ratio=ratio)(terms(t_B, *((role, value_B.float()) for role, value_B in low)))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        cast = TimestepAwareScaling(ratio=ratio)(terms(t_B, *low))  # type: ignore[arg-type]
    assert torch.equal(cast.loss, plain.loss)
    assert cast.logs == plain.logs
    assert {value.dtype for value in (cast.loss, *cast.logs.values())} == {torch.float32}


def test_the_halves_of_a_batch_average_to_the_whole() -> None:
    """So any number of processes and any accumulation give the same loss and gradient."""
    t, task, whole, halved = torch.rand(8), torch.rand(8) + 0.1, leaf(*range(1, 9)), leaf(*range(1, 9))
    scaling = TimestepAwareScaling(ratio_max=0.2)  # clamped here and there, so that the value tells of kd
    loss = scaling(terms(t, ("task", task), ("kd", whole))).loss
    parts = [scaling(terms(t[i], ("task", task[i]), ("kd", halved[i]))).loss for i in (slice(4), slice(4, 8))]
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, loss)
    loss.backward()
    mean.backward()
    torch.testing.assert_close(halved.grad, whole.grad)


def test_bins_give_their_samples_the_ratio_of_running_means() -> None:
    scaling = TimestepAwareScaling(ratio="bin")
    # Two samples in [0.5, 0.5625), one in [0.125, 0.1875).
    t = torch.tensor([0.51, 0.55, 0.15])
    kd = leaf(1, 3, 4)
    scaling(terms(t, ("task", torch.tensor([3.0, 5.0, 2.0])), ("kd", kd))).loss.backward()
    weight = logit_normal_lambda(t)
    torch.testing.assert_close(kd.grad, (1 - weight) * torch.tensor([2, 2, 0.5]) / 3)
    later = leaf(6.0)
    scaling(terms(t[:1], ("task", torch.tensor([1.0])), ("kd", later))).loss.backward()
    kept = 0.5 ** (1 / 1024)
    ratio = (8 * kept + 1) / (4 * kept + 6)
    torch.testing.assert_close(later.grad, (1 - weight[:1]) * ratio)


def test_a_restored_combiner_goes_on_where_it_was(tmp_path: Path) -> None:
    before = terms(torch.rand(50), ("task", torch.rand(50)), ("kd", torch.rand(50)))
    after = terms(torch.rand(50), ("task", torch.rand(50)), ("kd", torch.rand(50)))
    scaling, restored, fresh = (TimestepAwareScaling(ratio="bin") for _ in range(3))
    scaling(before)
    torch.save(scaling.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = scaling(after).loss
    assert torch.equal(restored(after).loss, expected)
    assert not torch.equal(fresh(after).loss, expected)


def test_without_bins_there_is_nothing_to_keep() -> None:
    scaling = TimestepAwareScaling()
    scaling(terms(TIMES, ("task", torch.ones(3)), ("kd", torch.ones(3))))
    assert scaling.state_dict() == {}


def test_weights_multiply_their_part_and_other_roles_are_added() -> None:
    losses: list[tuple[str, Role, float, float]] = [
        ("task", "task", 2.0, 1.0),
        ("kd", "kd", 5.0, 0.5),
        ("shallow", "feature", 3.0, 2.0),
        ("deep", "feature", 1.0, 2.0),
        ("adversarial", "adversarial", 7.0, 0.1),
    ]
    values = {name: torch.full((3,), value, requires_grad=True) for name, _, value, _ in losses}
    made = LossTerms(TIMES, tuple(LossTerm(name, role, values[name], weight) for name, role, _, weight in losses))
    loss, logs = TimestepAwareScaling()(made)
    assert loss.item() == pytest.approx(0.5 * 2 + 2 * 2 + 0.1 * 7)
    assert logs["ratio_feature"].item() == pytest.approx(2 / (3 + 1))
    assert {name: logs[name].item() for name in values} == {name: value for name, _, value, _ in losses}
    loss.backward()
    pull = (1 - logit_normal_lambda(TIMES)) / 3
    torch.testing.assert_close(values["deep"].grad, 2 * 0.5 * pull)
    torch.testing.assert_close(values["shallow"].grad, 2 * 0.5 * pull)
    torch.testing.assert_close(values["kd"].grad, 0.5 * 0.4 * pull)


def test_one_role_with_two_weights_is_refused() -> None:
    kd = [LossTerm(name, "kd", torch.ones(3), weight) for name, weight in (("near", 1.0), ("far", 0.5))]
    made = LossTerms(TIMES, (LossTerm("task", "task", torch.ones(3)), *kd))
    with pytest.raises(ValueError, match=r"role kd have the weights \{'near': 1\.0, 'far': 0\.5\}"):
        TimestepAwareScaling()(made)


@pytest.mark.parametrize("roles", [("task",), ("kd",), ("task", "adversarial"), ("kd", "feature")])
def test_terms_that_leave_nothing_to_scale_are_named(roles: tuple[Role, ...]) -> None:
    with pytest.raises(ValueError, match=rf"there are \{{'{roles[0]}': '{roles[0]}'"):
        TimestepAwareScaling()(terms(TIMES, *((role, torch.ones(3)) for role in roles)))
    check_roles({"data": "task", "deep": "feature"})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_ceiling_that_no_lambda_has_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="lambda_max is"):
        TimestepAwareScaling(lambda_max=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_bound_that_bounds_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="ratio_max is"):
        TimestepAwareScaling(ratio_max=value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("ratio", ["sample", "bin"])
def test_on_a_gpu_nothing_waits_for_the_device(ratio: str) -> None:
    scaling = TimestepAwareScaling(ratio=ratio)  # type: ignore[arg-type]
    given = terms(TIMES.cuda(), ("task", torch.ones(3, device="cuda")), ("kd", torch.ones(3, device="cuda")))
    scaling(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaling(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
