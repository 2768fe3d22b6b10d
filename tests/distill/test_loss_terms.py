import torch

from snapgen_pl.distill.loss_terms import LossTerm, LossTerms, WeightedSum


def test_the_default_combiner_sums_means_and_logs_them_when_there_are_several() -> None:
    t = torch.tensor([0.2, 0.4])
    task = LossTerm("task", "task", torch.tensor([1.0, 3.0], requires_grad=True))
    kd = LossTerm("kd", "kd", torch.tensor([5.0, 7.0]))
    alone, both = WeightedSum()(LossTerms(t, (task,))), WeightedSum()(LossTerms(t, (task, kd)))
    assert alone.loss.item() == 2
    assert alone.logs == {}
    assert both.loss.item() == 8
    assert {name: value.item() for name, value in both.logs.items()} == {"task": 2, "kd": 6}
    assert not both.logs["task"].requires_grad
    both.loss.backward()
    assert task.value_B.grad is not None
    assert task.value_B.grad.tolist() == [0.5, 0.5]


def test_the_default_combiner_weighs_terms_in_the_loss_and_not_in_logs() -> None:
    task = LossTerm("task", "task", torch.tensor([1.0, 3.0]))
    kd = LossTerm("kd", "kd", torch.tensor([5.0, 7.0]), weight=0.25)
    loss, logs = WeightedSum()(LossTerms(torch.tensor([0.2, 0.4]), (task, kd)))
    assert loss.item() == 2 + 0.25 * 6
    assert logs["kd"].item() == 6
