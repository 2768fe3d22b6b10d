"""benchmarks.training, in small: what it times is what `fit` does, and what it says adds up."""

import json
from collections.abc import Callable
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.clock import Clock, Part
from benchmarks.cuda import CUDAReport, Task, captured, cuda_table, network_step, throughput
from benchmarks.networks import Subject, feed, forward_backward, materialise
from benchmarks.timing import Sample, environment
from benchmarks.training import TEACHER, cpu_table, main, run_cpu, teacher_network
from benchmarks.training_step import WORK, Stage, Step, Update, pieces, whole_step
from snapgen_pl.models.count import count as counted
from snapgen_pl.models.denoiser import Denoiser
from snapgen_pl.models.mmdit import MMDiT
from snapgen_pl.models.peers.dit import DiT
from snapgen_pl.models.unet import Block, UNet
from snapgen_pl.models.unet import Stage as Level

CPU = torch.device("cpu")
SIZE = 8
STAGES = tuple(WORK)


def unet(size: int = SIZE) -> UNet:
    stages = [Level(32, [Block()], [Block()] * 2), Level(32, [Block(layers=1)], [Block(layers=1)] * 2)]
    return UNet(stages, middle_layers=1, context_dim=16, head_dim=16)


def dit(size: int = SIZE) -> DiT:
    return DiT(hidden=32, depth=1, heads=2, context_dim=32)


def teacher(device: torch.device, channels: int) -> MMDiT:
    with device:
        return MMDiT(channels, layers=2, heads=2, head_dim=16, context_dim=32, pooled_dim=32, latent_size=SIZE)


SUBJECTS = {"snapgen": Subject(unet, tokens=3), "dit_xl_2": Subject(dit, tokens=1)}


def step_of(stage: Stage, clock: Clock | None = None, student: Denoiser | None = None) -> Step:
    return Step(stage, student or materialise(unet, CPU), 3, teacher(CPU, 4), SIZE, 2, clock or Clock())


class Marks(Clock):
    """Keeps the parts in their order, and whether the student had gradients by then."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student, self.seen = student, []

    def mark(self, part: Part) -> None:
        learned = any(weight.grad is not None for weight in self.student.parameters())
        self.seen.append((part, learned))


def test_what_passes_before_a_mark_is_the_parts_that_it_names() -> None:
    ticks = count()
    clock = Clock(lambda: Sample(float(tick := next(ticks)), 10.0 * tick))

    def step() -> None:
        for part in ("student", "teacher", "student"):
            clock.mark(part)

    step()
    assert next(ticks) == 0  # nobody asked, so nothing was read
    assert clock.parts(step) == {"student": Sample(2.0, 20.0), "teacher": Sample(1.0, 10.0)}
    step()
    assert next(ticks) == 5


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("pretraining", ["student"]),
        # The teacher is asked, and answers.
        ("distillation", ["student", "teacher", "student", "teacher", "student"]),
        # It answers, its features and the heads on them, the gradients through both, and the student's own.
        ("generator", ["student", "teacher"] * 3 + ["heads", "teacher", "student"]),
        ("discriminator", ["student", "teacher", "student", "teacher", "heads", "heads", "heads"]),
    ],
)
def test_a_step_tells_its_parts_in_the_order_of_its_work(stage: Stage, parts: list[Part]) -> None:
    student = materialise(unet, CPU)
    marks = Marks(student)
    step_of(stage, marks, student).gradients()
    assert [part for part, _ in marks.seen] == parts
    # Gradients are through the teacher before the first of the student's weights has any.
    assert [learned for _, learned in marks.seen] == [False] * (len(parts) - 1) + [stage != "discriminator"]


def test_stages_train_their_own_weights_all_of_them_and_no_others_of_one_student() -> None:
    student = materialise(unet, CPU)
    for stage in (*STAGES, "pretraining"):
        step = step_of(stage, student=student)
        step.gradients()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in step.weights)
        own = {id(weight) for weight in step.weights}
        for weight in student.parameters():
            assert (id(weight) in own) == (weight.grad is not None) == (stage != "discriminator")
            weight.grad = None


def test_distillation_has_features_of_students_that_have_any_on_the_teachers_grid() -> None:
    whole, bare = unet(), unet()
    bare.feature_channels, bare.feature_strides = {}, {}
    weights = {name: step_of("distillation", student=student).weights for name, student in (("f", whole), ("", bare))}
    projection = [weight.shape for weight in weights["f"][len(weights[""]) :]]
    assert projection == [(32, 32, 1, 1), (32,)]


def test_an_update_is_clipping_adamw_and_the_average() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    for weight in weights:
        weight.grad = 10 * torch.randn_like(weight)
    norm = torch.cat([weight.grad.flatten() for weight in weights]).norm()
    wanted = [weight.detach().clone().requires_grad_() for weight in weights]
    for weight, own in zip(wanted, weights, strict=True):
        weight.grad = own.grad / norm
    torch.optim.AdamW(wanted, lr=1e-6, weight_decay=0.0, fused=False, foreach=False).step()
    began = [weight.detach().clone() for weight in weights]
    update = Update(weights, averaged=True, clock=Clock())
    update()
    for own, weight, average, before in zip(weights, wanted, update._average, began, strict=True):
        torch.testing.assert_close(own, weight)
        torch.testing.assert_close(average, before.lerp(weight, 1e-4))
    assert not Update(weights, averaged=False, clock=Clock())._average


@pytest.mark.parametrize("stage", STAGES)
def test_a_whole_step_moves_weights_and_leaves_no_gradients(stage: Stage) -> None:
    step = step_of(stage)
    assert_moves(whole_step(step), step.weights, moved=True)


@pytest.mark.parametrize("task", ["forward", "training"])
def test_a_network_alone_is_moved_by_training_alone(task: Task) -> None:
    built: list[Denoiser] = []

    def build(size: int) -> Denoiser:
        built.append(unet(size))
        return built[-1]

    call = network_step(Subject(build, tokens=3), task, "eager", 2, SIZE, CPU)
    assert_moves(call, list(built[0].parameters()), moved=task == "training")


def assert_moves(call: Callable[[], None], weights: list[nn.Parameter], moved: bool) -> None:
    before = [weight.detach().clone() for weight in weights]
    call()
    # With weights as small as these, some gradients are next to nothing.
    assert moved == any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert all(weight.grad is None for weight in weights)


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 12))
def test_pieces_are_all_weights_in_their_order(sizes: list[int], largest: int) -> None:
    weights = [nn.Parameter(torch.empty(size)) for size in sizes]
    found = list(pieces(weights, largest))
    assert [id(weight) for piece in found for weight in piece] == [id(weight) for weight in weights]
    assert all(len(piece) == 1 or sum(weight.numel() for weight in piece) <= largest for piece in found)
    assert all(
        sum(weight.numel() for weight in piece) + following[0].numel() > largest for piece, following in pairwise(found)
    )


def test_the_record_holds_stages_parts_and_the_teachers_size() -> None:
    report = run_cpu(SUBJECTS, STAGES, teacher, batch=2, size=SIZE, rounds=1)
    record = json.loads(json.dumps(report.record()))
    assert list(record["stages"]) == list(STAGES)
    for stage, by_name in record["stages"].items():
        peer, ours = by_name["dit_xl_2"]["step"], by_name["snapgen"]["step"]
        assert record[f"{stage}_ratio_to_dit_xl_2"] == peer["cpu_min_s"] / ours["cpu_min_s"]
        for found in by_name.values():
            parts = [part["cpu_min_s"] for part in found["parts"].values()]
            assert found["step"]["cpu_min_s"] == pytest.approx(sum(parts))
            assert found["step"]["rounds"] == 1
        assert ("teacher" in by_name["snapgen"]["parts"]) == (stage != "pretraining")
        assert ("average" in by_name["snapgen"]["parts"]) == (stage != "discriminator")
    assert record["costs"][TEACHER] == counted(teacher(torch.device("meta"), 4), SIZE, 333)._asdict()
    console = Console(width=140, record=True)
    console.print(cpu_table(report))
    assert "discriminator" in console.export_text()


def test_the_whole_teacher_has_the_published_size() -> None:
    network = teacher_network(38, torch.device("meta"), 16)
    assert sum(weight.numel() for weight in network.parameters()) == 8_056_627_520


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    for options, said in (
        ({"networks": ["dit_xl_2"]}, "add snapgen"),
        ({"networks": ["snapgen", "nobody"]}, "no networks \\['nobody'\\].*snapgen_t2i"),
        ({"networks": ["snapgen", "snapgen_t2i"]}, "snapgen_t2i': 16}, and a teacher has one number"),
        ({"stages": ()}, "give at least one of each"),
        ({"rounds": 0}, "give at least one of each"),
        ({"batch": 0}, "batch 0; give at least one of each"),
        ({"teacher_layers": 0}, "teacher_layers 0"),
        ({"modes": ("eager",)}, "no use on cpu"),
        ({"device": "cuda", "batch": 2}, "no use on cuda"),
        ({"device": "cuda", "batches": (0,)}, "numbers from 1 on"),
    ):
        with pytest.raises(ValueError, match=said):
            main(json=record, **options)
    assert not record.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="there is no GPU here"):
        main(device="cuda")


def test_a_batch_that_does_not_fit_is_recorded_and_ends_nothing() -> None:
    def too_large(device: torch.device) -> Callable[[], None]:
        raise torch.OutOfMemoryError

    row = throughput(too_large, "generator", "graphed", batch=512, flops=1, steps=1)
    costs = {"snapgen": SUBJECTS["snapgen"].cost(SIZE)}
    report = CUDAReport("", environment("benchmarks.training"), SIZE, costs, {"snapgen": []})
    (known, again) = (json.loads(json.dumps(each.record())) for each in report.filled([("snapgen", lambda: row)] * 2))
    assert len(known["rows"]["snapgen"]) == 1
    assert len(again["rows"]["snapgen"]) == 2
    found = known["rows"]["snapgen"][0]
    assert [found.pop(name) for name in ("task", "compiled", "graphed", "batch")] == ["generator", True, True, 512]
    assert set(found.values()) == {None}
    console = Console(width=140, record=True)
    console.print(cuda_table(report))
    assert "does not fit" in console.export_text()


class WithoutTheHost(TorchDispatchMode):
    """Fails where an operation reads a number from the device, or brings one there: a CUDA graph can do neither."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "scalar_tensor", "lift_fresh", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name.strip("_") not in [forbidden.strip("_") for forbidden in self.FORBIDDEN], func
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0, 1.0, x),
        lambda x: x + torch.tensor([1.0]),
    ],
    ids=["reading", "choosing", "a number", "a copy"],
)
def test_waiting_for_the_host_is_noticed(wait: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="aten"), WithoutTheHost():
        wait(torch.ones(3))


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_has_warmed_up_never_waits_for_the_host(stage: Stage) -> None:
    step = step_of(stage)
    step.gradients()  # tables are made
    with WithoutTheHost():
        step.gradients()


@pytest.mark.parametrize("build", [unet, dit])
def test_bare_networks_never_wait_for_the_host(build: Callable[[], Denoiser]) -> None:
    network = materialise(build, CPU)
    run = partial(forward_backward, network, feed(network, 2, SIZE, 3, CPU))
    run()
    with WithoutTheHost():
        run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_replays_the_step(stage: Stage) -> None:
    device = torch.device("cuda")
    trained = []
    for mode in ("compiled", "graphed"):
        torch.manual_seed(0)
        student, network = materialise(unet, device), teacher(device, 4)
        step = Step(stage, student, 3, network, SIZE, 2, Clock(), mode)
        began = torch.cat([weight.detach().flatten() for weight in step.weights])
        call = whole_step(step)
        if mode == "graphed":
            call = captured(call)  # after three steps that warm up
        for _ in range(2 if mode == "graphed" else 5):
            call()
        trained.append(torch.cat([weight.detach().flatten() for weight in step.weights]) - began)
    compiled, graphed = trained
    # A graph casts weights at each use, and adds up their gradients in fp32, not in bf16.
    assert (graphed - compiled).norm() < 0.02 * compiled.norm()
